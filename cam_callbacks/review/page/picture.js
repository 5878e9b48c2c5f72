// A heatmap over a photo.

import { el } from './elements.js';
import { className } from './words.js';

export const COLORS = {
  inferno: ['000004', '1f0c48', '550f6d', '88226a', 'ba3655', 'e35933', 'f98c0a', 'f9c932', 'fcffa4'],
  viridis: ['440154', '472d7b', '3b528b', '2c728e', '21918c', '28ae80', '5ec962', 'addc30', 'fde725'],
  jet: ['000080', '0000ff', '0080ff', '00ffff', '80ff80', 'ffff00', 'ff8000', 'ff0000', '800000'],
  gray: ['000000', 'ffffff'],
};

/** What photos may be while heat lies over them; gray ones are darkened too. */
export const PHOTOS = ['gray', 'color'];

/** 256 colors between those of a color map, each a pixel as a canvas keeps it: opaque, blue, green, red. */
function colorTable(hexes) {
  const points = hexes.map((hex) => [4, 2, 0].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (points.length - 1);
    const left = Math.min(Math.floor(place), points.length - 2);
    const mixed = points[left].map((from, at) => Math.round(from + (points[left + 1][at] - from) * (place - left)));
    return mixed.reduce((pixel, byte) => pixel * 256 + byte, 255);
  });
}

const TABLES = Object.fromEntries(Object.entries(COLORS).map(([name, hexes]) => [name, colorTable(hexes)]));

/** Draw a small gray map in colors, scaled up smoothly before it is colored; `share` is what its white stands for. */
export function paint(canvas, map, colors, share = 1) {
  const { width, height } = canvas;
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.imageSmoothingQuality = 'high';
  context.drawImage(map, 0, 0, width, height);
  const image = context.getImageData(0, 0, width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const table = TABLES[colors];
  for (let at = 0; at < pixels.length; at++) pixels[at] = table[Math.round((pixels[at] & 255) * share)];
  context.putImageData(image, 0, 0);
}

/** What the colors of the heatmaps mean, as they look over a photo of medium brightness. */
export class Scale {
  #canvas = el('canvas', { width: 256, height: 1 });
  node = el('span.scale', { title: 'From the least heat of a map to its most' },
    '0',
    el('span.ramp', el('span.ground'), this.#canvas),
    '1',
    el('small', 'each map, or pair, its own range'),
  );

  show(colors) {
    const pixels = new Uint8ClampedArray(TABLES[colors].slice().buffer);
    this.#canvas.getContext('2d').putImageData(new ImageData(pixels, 256, 1), 0, 0);
  }
}

/** A photo with a heatmap as a layer of its own; the styles `--heat` and `--photo` say how both look. */
export class Picture {
  node;
  #canvas = el('canvas');
  #note = el('span.note');

  constructor(photo, side = 160) {
    const width = photo?.naturalWidth || 1;
    const height = photo?.naturalHeight || 1;
    const scale = side / Math.max(width, height);
    this.#canvas.width = Math.max(1, Math.round(width * scale));
    this.#canvas.height = Math.max(1, Math.round(height * scale));
    const image = photo?.cloneNode();
    if (image) image.alt = '';
    this.node = el('span', { class: image ? 'picture' : 'picture no-photo' }, image, this.#canvas, this.#note);
  }

  /**
   * Show a map, of which is known whether it is blank or skipped; where there is no heat, the photo stays as it is.
   * `share`: its largest value on the scale of the colors.
   */
  show(map, { blank, skipped }, colors, isPhoto = true, share = 1) {
    const drawn = Boolean(map) && !skipped && !blank;
    this.#canvas.hidden = !drawn;
    this.node.classList.toggle('heated', drawn && isPhoto);
    if (drawn) paint(this.#canvas, map, colors, share);
    const why = blank ? 'blank: no contrast' : '';
    this.#note.textContent = skipped ? 'skipped: values were not finite' : why;
  }
}

/** A probe's photo with its heat; beside it with that of its rival, if it is explained, each under the name of its class. */
export class ProbePicture {
  node = el('span.pictures');
  #photo;
  #side;
  #own;
  #rival = null; // made when there is one
  #names = [el('small.name'), el('small.name')];

  constructor(photo, side) {
    this.#photo = photo;
    this.#side = side;
    this.#own = new Picture(photo, side);
    this.node.append(this.#own.node);
  }

  /** Show probe `index` at a look. */
  show(look, index, colors) {
    const probe = look.probes[index];
    const { rival } = probe;
    const most = Math.max(probe.largest ?? 0, rival?.largest ?? 0);
    const share = (largest) => (rival && most > 0 ? (largest ?? 0) / most : 1); // both have one scale
    this.#own.show(look.maps[index], probe, colors, !look.signals, share(probe.largest));
    if (rival) this.#showRival(look.rivals[index], look, probe, colors, share(rival.largest));
    if (Boolean(rival) === this.node.classList.contains('pair')) return;
    this.node.classList.toggle('pair');
    const [own, other] = this.#names;
    const pair = () => [el('span', own, this.#own.node), el('span', other, this.#rival.node)];
    this.node.replaceChildren(...(rival ? pair() : [this.#own.node]));
  }

  #showRival(map, look, { explained, rival }, colors, share) {
    this.#rival ??= new Picture(this.#photo, this.#side);
    this.#rival.show(map, rival, colors, !look.signals, share);
    for (const [at, label] of [explained, rival.label].entries()) {
      const name = className(look, label);
      this.#names[at].textContent = name;
      this.#names[at].title = name;
    }
  }
}
