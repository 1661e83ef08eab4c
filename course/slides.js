// One slide at a time, on a stage of 1280 x 720 that fills the window.
const slides = [...document.querySelectorAll("section")];
const main = document.querySelector("main");
let at = 0;

function show(index) {
  at = Math.max(0, Math.min(slides.length - 1, index));
  slides.forEach((slide, i) => slide.classList.toggle("shown", i === at));
  if (location.hash !== `#${at + 1}`) history.replaceState(null, "", `#${at + 1}`);
}

function fit() {
  const notes = document.body.classList.contains("notes") ? 200 : 0;
  const scale = Math.min(innerWidth / 1280, (innerHeight - notes) / 720);
  main.style.transform = `translate(${(innerWidth - 1280 * scale) / 2}px, ${(innerHeight - notes - 720 * scale) / 2}px) scale(${scale})`;
}

const actions = {
  ArrowRight: () => show(at + 1), PageDown: () => show(at + 1), " ": () => show(at + 1), ArrowDown: () => show(at + 1),
  ArrowLeft: () => show(at - 1), PageUp: () => show(at - 1), ArrowUp: () => show(at - 1),
  Home: () => show(0), End: () => show(slides.length - 1),
  n: () => { document.body.classList.toggle("notes"); fit(); },
  f: () => { document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen(); },
};

addEventListener("keydown", event => {
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (action && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); action(); }
});
document.querySelector("[name=previous]").onclick = event => { show(at - 1); event.target.blur(); };
document.querySelector("[name=next]").onclick = event => { show(at + 1); event.target.blur(); };
let start = null;
addEventListener("touchstart", event => { start = event.touches[0].clientX; });
addEventListener("touchend", event => {
  const moved = event.changedTouches[0].clientX - start;
  if (Math.abs(moved) > 50) show(at + (moved < 0 ? 1 : -1));
});
addEventListener("hashchange", () => show(Number(location.hash.slice(1)) - 1 || 0));
addEventListener("resize", fit);
show(Number(location.hash.slice(1)) - 1 || 0);
fit();
