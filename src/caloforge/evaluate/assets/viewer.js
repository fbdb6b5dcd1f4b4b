// Showers in three dimensions: voxels as boxes or ring sectors, drawn back to front on one canvas per sample.
// World: X along the depth, Y up, Z = -x, all in units of the mesh's radius; the camera looks along -Z from distance D.
"use strict";
(() => {
  const source = document.getElementById("scene");
  const stages = document.getElementById("stages");
  if (!source || !stages) return;
  const scene = JSON.parse(source.textContent);
  const D = 5; // distance of the camera
  const MOST_MOVING = 6000; // blocks that are drawn as solids while the picture moves
  const START = { yaw: 0.62, pitch: 0.36, zoom: 1 };
  const SHADES = [0.72, 0.72, 0.86, 0.86, 1, 1]; // front and back, sides along the first and the second axis
  const FACES = [[3, 2, 1, 0], [4, 5, 6, 7], [3, 0, 4, 7], [1, 2, 6, 5], [0, 1, 5, 4], [2, 3, 7, 6]];
  const state = { ...START, step: scene.showers.length >> 1, from: 0, to: scene.layers.length - 1, least: 0 };
  let light = false; // white ground, for print
  const $ = (id) => document.getElementById(id);

  // ---- Mesh ----
  const wholeTurn = (layer) => layer.first[layer.first.length - 1] - layer.first[0];
  const layers = scene.layers.map((layer) => {
    const n1 = layer.first.length - 1, n2 = layer.second.length - 1;
    const chords = layer.polar ? Math.max(1, Math.round((20 * wholeTurn(layer)) / (2 * Math.PI * n1))) : 1;
    return { ...layer, n1, n2, chords };
  });
  let count = 0;
  for (const layer of layers) { layer.start = count; count += layer.n1 * layer.n2; }
  const wide = Math.max(...layers.map((layer) => {
    const half = (edges) => Math.max(Math.abs(edges[0]), Math.abs(edges[edges.length - 1]));
    return layer.polar ? half(layer.second) : Math.hypot(half(layer.first), half(layer.second));
  }));
  const [front, back] = [Math.min(...layers.map((l) => l.depth[0])), Math.max(...layers.map((l) => l.depth[1]))];
  const radius = Math.hypot(wide, (back - front) / 2);
  const worldX = (z) => (z - (front + back) / 2) / radius;

  // ---- Showers ----
  const unpack = (text, Kind) => new Kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const layerOf = (voxel) => {
    let low = 0, high = layers.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (layers[middle].start <= voxel) low = middle; else high = middle - 1;
    }
    return low;
  };

  // Blocks of one shower: 8 corners each, layer and level (0 softest .. 1 hottest). A ring sector is one block or more.
  const solids = (shower) => {
    const cells = unpack(shower.cells, scene.wide ? Uint32Array : Uint16Array);
    const codes = unpack(shower.codes, Uint16Array);
    const corners = [], level = [], of = [], flip = [], sides = [];
    cells.forEach((voxel, k) => {
      const number = layerOf(voxel), layer = layers[number], t = codes[k] / 65535;
      const i = Math.floor((voxel - layer.start) / layer.n2), j = (voxel - layer.start) % layer.n2;
      const size = 0.3 + 0.65 * t;
      const span = (a, b) => [(a + b) / 2 - (size * (b - a)) / 2, (a + b) / 2 + (size * (b - a)) / 2];
      const q = span(layer.second[j], layer.second[j + 1]), z = span(...layer.depth).map(worldX);
      const ring = layer.polar && layer.n1 === 1, closed = ring && wholeTurn(layer) > 6.28;
      const p = ring ? layer.first : span(layer.first[i], layer.first[i + 1]);
      for (let c = 0; c < layer.chords; c++) {
        const a = p[0] + ((p[1] - p[0]) * c) / layer.chords, b = p[0] + ((p[1] - p[0]) * (c + 1)) / layer.chords;
        for (const depth of z) {
          for (const [u, v] of [[a, q[0]], [b, q[0]], [b, q[1]], [a, q[1]]]) {
            const x = layer.polar ? v * Math.cos(u) : u, y = layer.polar ? v * Math.sin(u) : v;
            corners.push(depth, y / radius, -x / radius);
          }
        }
        level.push(t); of.push(number); flip.push(layer.polar ? -1 : 1);
        sides.push(closed ? [false, false] : [c === 0, c === layer.chords - 1]); // no walls inside of a sector
      }
    });
    const block = { n: level.length, corners: Float32Array.from(corners), level, of, flip, sides };
    block.flat = new Float32Array(16 * block.n); // projected corners
    block.key = new Float64Array(block.n);
    block.order = Uint32Array.from(level.keys());
    return block;
  };
  const cache = new Map();
  const shown = (sample) => {
    const key = state.step * scene.samples.length + sample;
    if (!cache.has(key)) {
      if (cache.size > 4 * scene.samples.length) cache.clear();
      cache.set(key, solids(scene.showers[state.step][sample]));
    }
    return cache.get(key);
  };

  // ---- Colours ----
  const palette = scene.colours.map((text) => {
    const rgb = [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
    return SHADES.map((shade) => `rgb(${rgb.map((v) => Math.round(v * shade)).join(",")})`);
  });

  // ---- Drawing ----
  // Rotation about the vertical by yaw, then about the horizontal by pitch: right, up and distance from the camera.
  const rotation = ({ yaw, pitch }) => {
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    return (x, y, z) => {
      const away = cy * z - sy * x;
      return [cy * x + sy * z, cp * y - sp * away, D - sp * y - cp * away];
    };
  };
  const outline = (layer, depth) => {
    const turn = [...Array(48).keys()].map((k) => (2 * Math.PI * k) / 48), ends = (e) => [e[0], e[e.length - 1]];
    const [a, b] = ends(layer.first), [c, d] = ends(layer.second);
    const flat = layer.polar ? turn.map((t) => [d * Math.cos(t), d * Math.sin(t)]) : [[a, c], [b, c], [b, d], [a, d]];
    return flat.map(([x, y]) => [worldX(depth), y / radius, -x / radius]);
  };
  const ends = [outline(layers[0], layers[0].depth[0]), outline(layers[layers.length - 1], layers[layers.length - 1].depth[1])];
  const tail = worldX(front) - 0.25; // of the arrow of the incident particle

  // At zoom 1 the mesh fills the canvas as it is first seen, whatever the shape of both.
  const fitted = (canvas) => {
    const turned = [...ends.flat(), [tail, 0, 0]].map((point) => rotation(START)(...point));
    const reach = (axis) => Math.max(...turned.map((point) => Math.abs(point[axis] / point[2])));
    return 0.46 * Math.min(canvas.width / reach(0), canvas.height / reach(1));
  };
  const camera = (canvas) => {
    const turned = rotation(state), focus = fitted(canvas) * state.zoom;
    const project = (x, y, z) => {
      const [right, up, depth] = turned(x, y, z);
      return [canvas.width / 2 + (focus * right) / depth, canvas.height / 2 - (focus * up) / depth, depth];
    };
    return { project, eye: -D * Math.cos(state.pitch) * Math.sin(state.yaw) };
  };

  const frame = (ctx, project) => {
    const line = (points, closed) => {
      ctx.beginPath();
      points.forEach((point, k) => ctx[k ? "lineTo" : "moveTo"](...project(...point)));
      if (closed) ctx.closePath();
      ctx.stroke();
    };
    ctx.globalAlpha = 1;
    ctx.strokeStyle = light ? "#999" : "#55636f";
    ctx.lineWidth = Math.max(1, ctx.canvas.width / 900);
    for (const end of ends) line(end, true);
    const every = ends[0].length > 8 ? 12 : 1;
    if (ends[0].length === ends[1].length) ends[0].forEach((p, k) => k % every || line([p, ends[1][k]], false));
    ctx.strokeStyle = light ? "#ccc" : "#2b3742";
    if (layers.length <= 12) for (const layer of layers.slice(1)) line(outline(layer, layer.depth[0]), true);
  };

  const arrow = (ctx, project, shower) => {
    if (Math.abs(shower.theta) > 1e-6) return; // whether the mesh follows the particle is not known here
    const at = (x) => [x, shower.y / radius, -shower.x / radius];
    const [from, tip] = [project(...at(tail)), project(...at(worldX(front) - 0.02))];
    const length = Math.hypot(tip[0] - from[0], tip[1] - from[1]) || 1, size = 0.02 * ctx.canvas.width;
    const [ux, uy] = [(tip[0] - from[0]) / length, (tip[1] - from[1]) / length];
    ctx.strokeStyle = ctx.fillStyle = light ? "#222" : "#e8eef4";
    ctx.lineWidth = Math.max(1.5, ctx.canvas.width / 450);
    ctx.beginPath();
    ctx.moveTo(from[0], from[1]);
    ctx.lineTo(tip[0] - ux * size, tip[1] - uy * size);
    ctx.stroke();
    if (length < size) return;
    ctx.beginPath();
    ctx.moveTo(tip[0], tip[1]);
    ctx.lineTo(tip[0] - ux * size - 0.4 * uy * size, tip[1] - uy * size + 0.4 * ux * size);
    ctx.lineTo(tip[0] - ux * size + 0.4 * uy * size, tip[1] - uy * size - 0.4 * ux * size);
    ctx.fill();
  };

  // Back to front: layers by their distance along the depth (exact for stacked layers), blocks of one layer by distance.
  const sorted = (block, project, eye) => {
    const order = layers.map((layer, k) => [Math.abs((worldX(layer.depth[0]) + worldX(layer.depth[1])) / 2 - eye), k]);
    const rank = new Float64Array(layers.length);
    order.sort((a, b) => b[0] - a[0]).forEach(([, k], place) => { rank[k] = place; });
    for (let k = 0; k < block.n; k++) {
      let sum = 0;
      for (let c = 0; c < 8; c++) {
        const at = 24 * k + 3 * c;
        const [x, y, depth] = project(block.corners[at], block.corners[at + 1], block.corners[at + 2]);
        block.flat[16 * k + 2 * c] = x;
        block.flat[16 * k + 2 * c + 1] = y;
        sum += depth;
      }
      block.key[k] = rank[block.of[k]] * 1000 - sum;
    }
    return block.order.sort((a, b) => block.key[a] - block.key[b]);
  };

  const paint = (ctx, block, k, quick) => {
    const flat = block.flat, base = 16 * k, t = block.level[k];
    const shades = palette[Math.round(t * (palette.length - 1))];
    ctx.globalAlpha = 0.4 + 0.6 * Math.min(1, 1.4 * t);
    if (quick) {
      const [x, y] = [(flat[base] + flat[base + 12]) / 2, (flat[base + 1] + flat[base + 13]) / 2];
      const side = 1 + 0.5 * Math.hypot(flat[base] - flat[base + 12], flat[base + 1] - flat[base + 13]);
      ctx.fillStyle = shades[4];
      ctx.fillRect(x - side / 2, y - side / 2, side, side);
      return;
    }
    for (let f = 0; f < 6; f++) {
      if ((f === 2 || f === 3) && !block.sides[k][f - 2]) continue;
      const [a, b, c, d] = FACES[f].map((corner) => base + 2 * corner);
      const area = (flat[c] - flat[a]) * (flat[d + 1] - flat[b + 1]) - (flat[c + 1] - flat[a + 1]) * (flat[d] - flat[b]);
      if (area * block.flip[k] <= 0) continue;
      ctx.fillStyle = shades[f];
      ctx.beginPath();
      ctx.moveTo(flat[a], flat[a + 1]);
      ctx.lineTo(flat[b], flat[b + 1]);
      ctx.lineTo(flat[c], flat[c + 1]);
      ctx.lineTo(flat[d], flat[d + 1]);
      ctx.fill();
    }
  };

  const draw = (sample, quick) => {
    const canvas = canvases[sample], scale = Math.min(window.devicePixelRatio || 1, 2);
    if (!canvas.clientWidth) return; // hidden
    const [w, h] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    const ctx = canvas.getContext("2d"), block = shown(sample), { project, eye } = camera(canvas);
    ctx.globalAlpha = 1;
    ctx.fillStyle = light ? "#fff" : getComputedStyle(document.documentElement).getPropertyValue("--stage").trim();
    ctx.fillRect(0, 0, w, h);
    frame(ctx, project);
    const behind = eye > worldX(front); // the particle arrives on the far side: its arrow is behind the shower
    if (behind) arrow(ctx, project, scene.showers[state.step][sample]);
    for (const k of sorted(block, project, eye)) {
      const layer = block.of[k];
      if (layer < state.from || layer > state.to || block.level[k] < state.least) continue;
      paint(ctx, block, k, quick);
    }
    ctx.globalAlpha = 1;
    if (!behind) arrow(ctx, project, scene.showers[state.step][sample]);
  };

  let waiting = 0, settle = 0;
  const drawAll = (quick = false) => canvases.forEach((_, sample) => draw(sample, quick));
  const redraw = (moving = false) => {
    clearTimeout(settle);
    const many = canvases.reduce((sum, _, sample) => sum + shown(sample).n, 0) > MOST_MOVING;
    if (moving && many) settle = setTimeout(() => redraw(), 180);
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => drawAll(moving && many));
  };

  // ---- Words ----
  const energyText = (mev) => {
    const [value, unit] = mev >= 1e6 ? [mev / 1e6, "TeV"] : mev >= 1e3 ? [mev / 1e3, "GeV"] : mev >= 1 ? [mev, "MeV"] : [mev * 1e3, "keV"];
    return `${value >= 100 ? value.toFixed(0) : value.toPrecision(3)} ${unit}`;
  };
  const angle = (shower) => (shower.theta ? `, θ ${((shower.theta * 180) / Math.PI).toFixed(1)}°` : "");
  const describe = () => {
    scene.showers[state.step].forEach((shower, sample) => {
      const lost = shower.lost > 0.001 ? `, soft voxels left out: ${(100 * shower.lost).toFixed(1)} % of the energy` : "";
      const text = `${energyText(shower.energy)} incident${angle(shower)}, ${energyText(shower.total)} in ${shower.hit} voxels${lost}`;
      captions[sample].replaceChildren(Object.assign(document.createElement("b"), { textContent: scene.samples[sample] }), " " + text);
      canvases[sample].setAttribute("aria-label", `${scene.samples[sample]}: ${text}. Arrow keys turn, plus and minus zoom, n and p step.`);
    });
    $("which").value = String(state.step);
    $("from-text").textContent = state.from;
    $("to-text").textContent = state.to;
    $("least-text").textContent = state.least ? energyText(scene.low * (scene.high / scene.low) ** state.least) : "none";
  };

  // ---- Controls ----
  const turn = (yaw, pitch) => {
    state.yaw += yaw;
    state.pitch = Math.max(-1.57, Math.min(1.57, state.pitch + pitch));
    redraw(true);
  };
  const zoom = (factor) => { state.zoom = Math.max(0.4, Math.min(20, state.zoom * factor)); redraw(true); };
  const step = (to) => {
    state.step = (to + scene.showers.length) % scene.showers.length;
    describe();
    redraw();
    $("told").textContent = `Shower ${state.step + 1} of ${scene.showers.length}`;
  };
  const view = (yaw, pitch) => { Object.assign(state, { yaw, pitch }); redraw(); };
  let spinning = 0;
  const spin = () => {
    const button = document.querySelector('[data-do="spin"]');
    clearInterval(spinning);
    spinning = spinning ? 0 : setInterval(() => turn(0.012, 0), 33);
    button.setAttribute("aria-pressed", String(Boolean(spinning)));
  };
  const actions = {
    previous: () => step(state.step - 1), next: () => step(state.step + 1), in: () => zoom(1.25), out: () => zoom(0.8),
    front: () => view(-Math.PI / 2, 0), side: () => view(0, 0), reset: () => { Object.assign(state, START); redraw(); }, spin,
    full: () => (document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen?.().catch(() => {})),
  };
  const keys = {
    ArrowLeft: () => turn(-0.1, 0), ArrowRight: () => turn(0.1, 0), ArrowUp: () => turn(0, -0.1), ArrowDown: () => turn(0, 0.1),
    "+": actions.in, "=": actions.in, "-": actions.out, n: actions.next, p: actions.previous, 0: actions.reset,
  };
  $("stage").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    if (event.target.matches("input, select") && event.key.startsWith("Arrow")) return; // arrows belong to the slider
    if (event.target.matches("select")) return;
    keys[event.key]();
    event.preventDefault();
  });
  $("stage").addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button) actions[button.dataset.do]();
  });

  // Pointers: one turns (on a touch screen sideways only, so that the page still scrolls), two turn and zoom.
  const fingers = new Map();
  const pointers = (canvas) => {
    canvas.addEventListener("pointerdown", (event) => { fingers.set(event.pointerId, event); canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      const old = fingers.get(event.pointerId);
      if (!old) return;
      const apart = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY); };
      const before = fingers.size === 2 ? apart() : 0, share = 1 / fingers.size;
      fingers.set(event.pointerId, event);
      if (before) zoom(apart() / before);
      turn((event.clientX - old.clientX) * 0.008 * share, (event.clientY - old.clientY) * 0.008 * share);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls until the picture was clicked
      zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.04 : 0.0015)));
      event.preventDefault();
    }, { passive: false });
  };

  // ---- Set-up ----
  const captions = [];
  const canvases = scene.samples.map((name, sample) => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    if (sample) figure.className = `of-${sample}`;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    captions.push(document.createElement("figcaption"));
    figure.append(canvas, captions[sample]);
    stages.append(figure);
    pointers(canvas);
    return canvas;
  });
  scene.showers.forEach((samples, k) => $("which").append(new Option(`${k + 1} of ${scene.showers.length}: ${energyText(samples[0].energy)}`, k)));
  $("which").addEventListener("change", (event) => step(Number(event.target.value)));
  for (const id of ["from", "to"]) {
    $(id).max = String(layers.length - 1);
    $(id).value = String(state[id]);
    $(id).addEventListener("input", () => {
      const other = id === "from" ? "to" : "from";
      state[id] = Number($(id).value);
      if (state.from > state.to) { state[other] = state[id]; $(other).value = $(id).value; }
      describe();
      redraw();
    });
    $(id).parentNode.hidden = layers.length === 1;
  }
  $("least").addEventListener("input", () => { state.least = Number($("least").value); describe(); redraw(); });
  $("ramp").style.background = `linear-gradient(to right, ${scene.colours.join(",")})`;
  const decades = Math.log10(scene.high / scene.low);
  for (let e = Math.ceil(Math.log10(scene.low)); e <= Math.log10(scene.high); e++) {
    const tick = document.createElement("span");
    tick.textContent = e < -2 || e > 4 ? `10${String(e).replace(/./g, (c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻")}` : String(10 ** e);
    tick.style.left = `${(100 * (e - Math.log10(scene.low))) / decades}%`;
    $("ticks").append(tick);
  }
  new ResizeObserver(() => redraw()).observe(stages);
  window.addEventListener("resize", () => redraw());
  const printing = (on) => () => { light = on; drawAll(); };
  window.addEventListener("beforeprint", printing(true));
  window.addEventListener("afterprint", printing(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  describe();
  drawAll();
})();
