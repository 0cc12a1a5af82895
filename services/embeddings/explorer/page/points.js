// Points of the map as pixels: 10^5 of them take a few milliseconds, without WebGL.

// One colour per cluster as 0xAABBGGRR. The golden angle keeps neighbouring numbers apart; both themes can show them.
export function colours(clusters) {
  const made = new Map();
  for (const cluster of clusters) {
    if (made.has(cluster)) continue;
    made.set(cluster, cluster < 0 ? 0xff888888 : fromHue((cluster * 137.508) % 360));
  }
  return made;
}

function fromHue(hue) {
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (0.52 - 0.33 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return ((255 << 24) | (channel(4) << 16) | (channel(8) << 8) | channel(0)) >>> 0;
}

export function paint(context, data, palette, view) {
  const { width, height, x, y, scale } = view;
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const side = data.n > 50_000 ? 2 : data.n > 5_000 ? 3 : 5;
  for (let i = 0; i < data.n; i++) {
    const px = Math.round(width / 2 + (data.xy[2 * i] - x) * scale) - (side >> 1);
    const py = Math.round(height / 2 - (data.xy[2 * i + 1] - y) * scale) - (side >> 1);
    if (px < 0 || py < 0 || px + side > width || py + side > height) continue;
    const colour = palette.get(data.clusters[i]);
    for (let row = py; row < py + side; row++) pixels.fill(colour, row * width + px, row * width + px + side);
  }
  context.putImageData(image, 0, 0);
}

// Indices of the points inside a polygon of canvas pixels, by the even-odd rule.
export function within(data, polygon, view) {
  const xs = polygon.map(([px]) => view.x + (px - view.width / 2) / view.scale);
  const ys = polygon.map(([, py]) => view.y - (py - view.height / 2) / view.scale);
  const [left, right, bottom, top] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const found = [];
  for (let i = 0; i < data.n; i++) {
    const [x, y] = [data.xy[2 * i], data.xy[2 * i + 1]];
    if (x < left || x > right || y < bottom || y > top) continue;
    let inside = false;
    for (let a = 0, b = xs.length - 1; a < xs.length; b = a++) {
      if (ys[a] > y !== ys[b] > y && x < ((xs[b] - xs[a]) * (y - ys[a])) / (ys[b] - ys[a]) + xs[a]) inside = !inside;
    }
    if (inside) found.push(i);
  }
  return found;
}

// Index of the point nearest to a canvas pixel, or -1 if none is within `limit` pixels.
export function nearest(data, px, py, view, limit) {
  const x = view.x + (px - view.width / 2) / view.scale;
  const y = view.y - (py - view.height / 2) / view.scale;
  let [best, least] = [-1, (limit / view.scale) ** 2];
  for (let i = 0; i < data.n; i++) {
    const distance = (data.xy[2 * i] - x) ** 2 + (data.xy[2 * i + 1] - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  }
  return best;
}
