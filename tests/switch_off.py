"""Switch off each feature of the explorer, one at a time, and see that its test notices.

    python tests/switch_off.py [WORDS ...]      # only the features whose name holds one of the words

Works on a copy of the repository. First all tests must pass as they are; then a line for each feature says which test
must fail and whether it did. Takes half a minute a feature; run it when `static/explorer.js` or `test_browser.py` has
changed. It is no part of `make test`. Text that is no longer in the source is an error, so the list cannot grow stale
unseen.
"""
# ruff: noqa: E501
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FEATURES = [  # name, what is replaced, by what, the test that must fail
    ("click on a point", "if (i >= 0) choose(i); }", "}", "a_click_shows"),
    ("click on a neighbour", 'b.addEventListener("click", () => choose(i));\n        return b;', "return b;", "click_on_a_neighbour"),
    ("hover", "if (!press) return showHover(at);", "if (!press) return;", "hover_shows"),
    ("the right thumbnail", "place = index % perSheet;", "place = (index + 1) % perSheet;", "hover_shows"),
    ("check marks", 'same ? "\\u2713" : "\\u2717"', '"\\u2713"', "neighbours_and_query_show"),
    ("other view", "otherView(state.query, 48)", "thumbnail(state.query, 48)", "moco_says"),
    ("one-hot label", '"MoCo 0%"', '""', "moco_says"),
    ("gliding", "const slow = slowly &&", "const slow = false && slowly &&", "step_slider"),
    ("stored layouts", "now.to[encoder] = stored(encoder, step);", "now.to[encoder] = stored(encoder, steps.length - 1);", "step_slider"),
    ("play", "? place(state.step + 1) : stop()", "? place(steps.length - 1) : stop()", "play_goes"),
    ("drawing", "put((y + margin) * stride + x + margin, stamps[shapes[i]], colours[i]);", ";", "points_are_drawn"),
    ("legend", "!visible(i) ? HIDDEN :", "", "legend"),
    ("colour by agreement", "const colour = values ? mine[i] :", 'const colour = values && state.colour !== "agreement" ? mine[i] :', "colours_show"),
    ("colour by difference", 'state.colour === "difference" ? state.step :', 'state.colour === "difference" ? 0 :', "colours_show"),
    ("colour by hubs", "const colour = values ? mine[i] :", 'const colour = values && state.colour !== "hubness" ? mine[i] :', "colours_show"),
    ("confusing first", "arrays.agreement[start + i] :", "0 :", "confusing"),
    ("hubs first", "-arrays.hubness[start + i]", "0", "hubs_come"),
    ("query of a class", "labels[i] === Number(classBox.value)", "true", "class_and_chance"),
    ("wheel", "zoom(Math.exp(-event.deltaY / 400), ...here(event));", "zoom(Math.exp(-event.deltaY / 400));", "wheel_and_drag"),
    ("drag", "view.x -= (at[0]", "view.x += (at[0]", "wheel_and_drag"),
    ("temperature", "state.temperature = 10 ** v;", "", "temperature_and_count"),
    ("number of neighbours", "(v) => { state.k = v; }", "() => {}", "temperature_and_count"),
    ("entropy", "moment += part", "moment -= part", "temperature_and_count"),
    ("soft label by class", "byClass[arrays.labels[i]] += part;", "byClass[0] += part;", "temperature_and_count"),
    ("student's neighbours", "ask({ ...question, encoder })", "ask({ ...question, encoder: encoders[0] })", "differ"),
    ("student's map", "(encoders.indexOf(encoder) * steps.length + step) * count * 2", "step * count * 2", "differ"),
    ("lasso", "if (odd) inside.push(i);", "if (odd && i % 7) inside.push(i);", "lasso"),
    ("contact sheet", "indices.slice(0, SHEET_LIMIT).map", "indices.slice(1, SHEET_LIMIT).map", "lasso"),
    ("class counts", "counts[labels[i]] += 1;", "counts[0] += 1;", "lasso"),
    ("keyboard", "keys[event.key]();", "", "keys_do"),
    ("select the view by key", "s: selectView,", "", "keys_do"),
    ("contours", "if (state.contours && now.moment === 1)", "if (false)", "contours_hold"),
    ("contour of 80%", "contoursAround(encoder, mine, [0.8],", "contoursAround(encoder, mine, [0.2],", "contours_hold"),
    ("names off", "labels && state.names && classes", "labels && classes", "names_can"),
    ("search by file", " || folded.names[i]?.includes(text)", "", "search_finds"),
    ("search by class", "(labels && folded.classes[labels[i]].includes(text))", "false", "search_finds"),
    ("next match", "found.indexOf(state.query) + 1", "found.indexOf(state.query)", "search_finds"),
    ("select matches", "() => pick(matches())", "() => {}", "search_finds"),
    ("table", "labels ? header.classes[labels[i]] : \"\", header.names", "\"\", header.names", "saved_as_a_table"),
    ("quotes in the table", "replaceAll('\"', '\"\"')", "replaceAll('', '')", "saved_as_a_table"),
    ("picture", 'download("map.png", blob)', "0", "saved_as_a_picture"),
    ("more keys", "c: () => contourBox.click(),", "", "more_keys"),
    ("text stays text", "node.append(...children);", 'for (const c of children) typeof c === "string" '
     '? node.insertAdjacentHTML("beforeend", c) : node.append(c);', "names_are_text"),
    ("no network", "  drawLegend();\n  //", '  fetch("http://example.com/x").catch(() => {});\n  drawLegend();\n  //', "nothing_outside"),
    ("no WebGL", 'canvas.getContext("2d", { alpha: false })', 'canvas.getContext("webgl2")', "needs_no_webgl"),
    ("remark without labels", "say(header.note);", "", "smaller_sets"),
]
LAB = [  # these need a kernel
    ("selection in the kernel", "tell({ selection: indices });", "", "lasso"),
    ("query in the kernel", "tell({ query: index });", "", "kernel_knows"),
    ("query set in Python", '"change:query": follow("query", made.choose),', "", "kernel_knows"),
    ("own image", "if (!mine) return;", "return;", "own_image"),
    ("own image from Python", '"change:own": () => made.adopt(model.get("own"))', "", "own_image"),
    ("own image's error", "catch (error) { say(error.message); }\n    });\n    ask2", "catch { }\n    });\n    ask2", "own_image"),
    ("thumbnails from the kernel", "n * size, y: 0", "0, y: 0", "neighbours_and_query_show"),
]


def noticed(copy: Path, test: str) -> bool:
    "Whether this test fails, and nothing else goes wrong."
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "-p", "no:cacheprovider", "tests/test_browser.py", "-k", test]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "BROWSER_PATIENCE": "20"}
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)
    if run.returncode not in (0, 1) or not re.search(r"\d+ (failed|passed)", run.stdout):
        raise SystemExit(f"pytest -k {test!r} did not work:\n{run.stdout}{run.stderr}")
    return run.returncode == 1


def main() -> None:
    words, missed = sys.argv[1:], []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True,
                                text=True, check=True)
        for name in listed.stdout.split("\0"):  # all: the tests read pages, too
            if name and (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
        page = copy / "isd_nb" / "explore" / "static" / "explorer.js"
        original = page.read_text()
        if noticed(copy, "test"):
            raise SystemExit("some tests fail with nothing switched off")
        for kind, features in (("file", FEATURES), ("jupyter", LAB)):
            for name, old, new, test in features:
                if old not in original:
                    raise SystemExit(f"{name}: the source no longer holds {old!r}")
                if words and not any(word in name for word in words):
                    continue
                page.write_text(original.replace(old, new))
                found = noticed(copy, f"{test} and not {'jupyter' if kind == 'file' else 'file'}")
                missed += [] if found else [name]
                print(f"{name:28}{test:28}{'noticed' if found else 'NOT NOTICED'}", flush=True)
    sys.exit(f"not noticed: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
