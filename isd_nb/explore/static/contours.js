// Lines of equal density of points in a plane: a grid of counts, blurred, and the lines on which it has one value.
// Coordinates are the map's, from -1 to 1; a line is a list of segments, x1, y1, x2, y2 after one another.

const GRID = 96, REACH = 1.2; // cells in a row of the grid, which covers -REACH to REACH

function densityOf(at, chosen) { // at: (2 * count), x and y by turns; chosen: image numbers -> (GRID * GRID)
  let grid = new Float32Array(GRID * GRID);
  const cell = (v) => Math.max(0, Math.min(GRID - 1, Math.round(((v + REACH) / (2 * REACH)) * (GRID - 1))));
  for (const i of chosen) grid[cell(at[2 * i + 1]) * GRID + cell(at[2 * i])] += 1;
  for (let pass = 0; pass < 3; pass++) for (const step of [1, GRID]) grid = blurred(grid, step); // close to a Gaussian
  return grid;
}

function blurred(grid, step, radius = 2) { // the mean over 2 * radius + 1 cells, along rows (step 1) or columns (step GRID)
  const out = new Float32Array(grid.length), across = step === 1 ? GRID : 1;
  for (let lane = 0; lane < GRID; lane++) {
    for (let c = 0; c < GRID; c++) {
      let sum = 0;
      for (let d = Math.max(0, c - radius); d <= Math.min(GRID - 1, c + radius); d++) sum += grid[lane * across + d * step];
      out[lane * across + c * step] = sum / (2 * radius + 1);
    }
  }
  return out;
}

function levelAround(grid, at, chosen, share) { // the density that this share of the points lies above
  const values = Float32Array.from(chosen, (i) => { // between four cells
    const [x, y] = [0, 1].map((axis) => Math.max(0, Math.min(GRID - 1.001, ((at[2 * i + axis] + REACH) / (2 * REACH)) * (GRID - 1))));
    const c = Math.floor(x), r = Math.floor(y), s = x - c, t = y - r, mix = (k) => grid[k] * (1 - s) + grid[k + 1] * s;
    return mix(r * GRID + c) * (1 - t) + mix((r + 1) * GRID + c) * t;
  }).sort();
  const below = (1 - share) * (values.length - 1), low = Math.floor(below);
  return 0.999 * (values[low] + ((values[low + 1] ?? values[low]) - values[low]) * (below - low));
}

function contourOf(grid, level) { // marching squares
  const segments = [], place = (v) => (v / (GRID - 1)) * 2 * REACH - REACH;
  for (let y = 0; y < GRID - 1; y++) {
    for (let x = 0; x < GRID - 1; x++) {
      const corners = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]], crossed = [];
      for (let side = 0; side < 4; side++) {
        const [p, q] = [corners[side], corners[(side + 1) % 4]], [a, b] = [grid[p[1] * GRID + p[0]], grid[q[1] * GRID + q[0]]];
        if ((a > level) === (b > level)) continue;
        const t = (level - a) / (b - a);
        crossed.push(place(p[0] + (q[0] - p[0]) * t), place(p[1] + (q[1] - p[1]) * t));
      }
      segments.push(...crossed); // two crossings are one segment, four are two
    }
  }
  return segments;
}
