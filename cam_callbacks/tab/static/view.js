// The view of what CAMMonitor wrote: in TensorBoard's CAM tab and in the report, which inlines this file.
//
// One state (which run, which look, what order) -> View.update() -> everything is drawn from it again.
// All text comes from data and is set as text, never as HTML.

const LOOKS_KEPT = 24;
const TILES_PRINTED = 24;
const FEWEST_JUDGED = 10; // images of a class below which the verdict does not judge it
const ADDRESS_MS = 200; // browsers refuse to change the address at each move of a slider

// ---------------------------------------------------------------------------------------------------------------------
// Where the data comes from
// ---------------------------------------------------------------------------------------------------------------------

const QUOTED =
  'TensorBoard’s fast reader cannot read runs with a double quote in their names: start it with --load_fast=false, ' +
  'or rename the folder.';

/** Reads from TensorBoard's server. */
export class HttpSource {
  /** Whether all is at hand at once, so that it can be printed. */
  complete = false;

  runs = async () => (await this.#get('runs')).runs;
  /** The timeline, or `{unchanged: true}` where its state is the one that is known. */
  timeline = (run, monitor, known = '') => this.#get('timeline', { run, monitor, known });
  look = (run, monitor, step) => this.#get('look', { run, monitor, step });
  swaps = async (run, monitor, step) => (await this.#get('swaps', { run, monitor, step })).swaps;

  async #get(route, query = {}) {
    const answer = await fetch(`${route}?${new URLSearchParams(query)}`);
    const content = await answer.json().catch(() => ({}));
    if (answer.ok) return content;
    const why = content.error ?? `${route}: the server answered ${answer.status}`;
    throw new Error(query.run?.includes('"') ? `${why}. ${QUOTED}` : why);
  }
}

/** Reads from `{runs: [{timeline, looks: {step: look}, swaps: {step: picture}}], skipped: [{file, why}]}`. */
export class EmbeddedSource {
  complete = true;

  constructor(data) {
    this.data = data;
    this.skipped = data.skipped ?? [];
  }

  async runs() {
    const monitors = Map.groupBy(this.data.runs, ({ timeline }) => timeline.run);
    return [...monitors].map(([run, of]) => ({ run, monitors: of.map(({ timeline }) => timeline.monitor) }));
  }

  timeline = async (run, monitor) => this.#find(run, monitor).timeline;
  look = async (run, monitor, step) => this.#find(run, monitor).looks[step];
  swaps = async (run, monitor, step) => this.#find(run, monitor).swaps?.[step] ?? null;

  #find(run, monitor) {
    return this.data.runs.find(({ timeline }) => timeline.run === run && timeline.monitor === monitor);
  }
}

/** One run as one monitor saw it. Keeps the looks that were shown last, with their maps decoded. */
class Run {
  #looks = new Map();

  constructor(source, name, monitor) {
    Object.assign(this, { source, name, monitor, title: name });
  }

  /** Read the timeline; true if it has changed. */
  async read() {
    const before = this.timeline;
    const found = await this.source.timeline(this.name, this.monitor, before?.state);
    if (found.unchanged || found === before) return false;
    this.timeline = found;
    if (String(before?.photos) !== String(this.timeline.photos)) {
      this.photos = await Promise.all(this.timeline.photos.map(decoded));
    }
    return true;
  }

  get looks() {
    return this.timeline.looks;
  }

  get steps() {
    return this.looks.map(({ step }) => step);
  }

  /** The entry of the timeline that is nearest to a step. */
  at(step) {
    return this.looks.reduce((best, each) => (Math.abs(each.step - step) < Math.abs(best.step - step) ? each : best));
  }

  /** The look at a step of this run, its maps decoded. */
  look(step) {
    const known = this.#looks.get(step) ?? this.#read(step);
    this.#looks.delete(step); // the last one in a Map is the one that was set last
    this.#looks.set(step, known);
    if (this.#looks.size > LOOKS_KEPT) this.#looks.delete(this.#looks.keys().next().value);
    return known;
  }

  async #read(step) {
    try {
      const look = await this.source.look(this.name, this.monitor, step);
      const photos = look.photos && (await Promise.all(look.photos.map(decoded))); // probes of before a change
      return { ...look, photos: photos ?? this.photos, maps: await Promise.all(look.maps.map(decoded)) };
    } catch (error) {
      this.#looks.delete(step);
      throw error;
    }
  }

  swaps(step) {
    return this.source.swaps(this.name, this.monitor, step);
  }

  /** Whether both runs watch the same photos. */
  sharesProbesWith(other) {
    return this.photos.length > 0 && String(this.timeline.photos) === String(other.timeline.photos);
  }
}

/** The state in the hash of a page, in the keys that begin with `prefix`; the rest of the hash is left as it is. */
export class HashAddress {
  constructor(page = window, prefix = '', first = '') {
    Object.assign(this, { page, prefix, first });
  }

  get #parts() {
    return this.page.location.hash.slice(1).split('&').filter(Boolean);
  }

  get url() {
    return this.page.location.href;
  }

  read() {
    const own = this.#parts.map((part) => part.split('=').map(decode)).filter(([key]) => key.startsWith(this.prefix));
    return Object.fromEntries(own.map(([key, value = '']) => [key.slice(this.prefix.length), value]));
  }

  write(values) {
    const others = this.#parts.filter((part) => !decode(part).startsWith(this.prefix));
    if (others.length === 0 && this.first) others.push(this.first);
    const own = Object.entries(values).map(([key, value]) => `${this.prefix}${key}=${encodeURIComponent(value)}`);
    this.page.history.replaceState(this.page.history.state, '', `#${[...others, ...own].join('&')}`);
  }

  onChange(callback) {
    this.page.addEventListener('hashchange', callback);
  }
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Small tools
// ---------------------------------------------------------------------------------------------------------------------

/** Make elements: `el('div.cards', { title }, child, [children])`; what is null, false or '' is left out. */
const maker = (namespace) => (kind, ...content) => {
  const [tag, ...classes] = kind.split('.');
  const node = document.createElementNS(namespace, tag);
  if (classes.length > 0) node.setAttribute('class', classes.join(' '));
  for (const part of content.flat(Infinity)) {
    if (part == null || part === false || part === '') continue;
    if (typeof part === 'object' && !(part instanceof Node)) setAttributes(node, part);
    else node.append(part);
  }
  return node;
};

/** `onclick` and the like listen; true is an attribute without a value; null and false are left out. */
function setAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value != null && value !== false) node.setAttribute(name, value === true ? '' : value);
  }
}

const el = maker('http://www.w3.org/1999/xhtml');
const svg = maker('http://www.w3.org/2000/svg');

/** Put [value, words] into a select, only if they differ from those that are there, and choose one. */
function fill(select, options, chosen) {
  const there = [...select.options].map(({ value, text }) => [value, text]);
  if (JSON.stringify(there) !== JSON.stringify(options)) {
    select.replaceChildren(...options.map(([value, words]) => new Option(words, value)));
  }
  select.value = chosen;
}

const same = (names) => names.map((name) => [name, name]);

/** The image of a data URI when it is ready; null if there is none. */
function decoded(source) {
  return new Promise((done) => {
    if (!source) return void done(null);
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => done(null);
    image.src = source;
  });
}

const digits = (value, count = 2) => (value == null ? '–' : value.toFixed(count).replace(/^-(?=[0.]+$)/, ''));
const short = (value) => (value == null ? '–' : Number(value.toPrecision(3)).toString());
const interval = (estimate) => `[${digits(estimate.low)}, ${digits(estimate.high)}]`;
const plural = (count, one) => `${count} ${one}${count === 1 ? '' : 's'}`;
const moment = (look) => (look.epoch == null ? `step ${look.step}` : `epoch ${look.epoch} · step ${look.step}`);
const className = (look, index) => (index == null ? 'no label' : (look.class_names?.[index] ?? `class ${index}`));
const isMistake = (probe) => probe.target != null && probe.predicted != null && probe.target !== probe.predicted;
const overall = (audit, measure) => audit?.measures?.[measure]?.overall ?? null;

/**
 * The estimate that the verdict is about, with its `label`: of those that it names, or else of all that are judged, the
 * one with the highest lower bound.
 */
function judged(audit, measure) {
  const { overall: all, per_class: of } = audit?.measures?.[measure] ?? {};
  const known = [['all', all], ...Object.entries(of ?? {})].filter(([, each]) => each?.value != null);
  const named = known.filter(([label]) => audit.verdict.classes?.includes(label));
  const enough = known.filter(([label, { count }]) => label === 'all' || count >= FEWEST_JUDGED);
  const [first, ...others] = named.length > 0 ? named : enough;
  if (!first) return null;
  const [label, worst] = others.reduce((best, each) => ((each[1].low ?? -1) > (best[1].low ?? -1) ? each : best), first);
  return { ...worst, label };
}

/** The Markdown that verdicts are written in: paragraphs, lists, bold, emphasis. */
function markdown(text) {
  return text.split(/\n{2,}/).map((block) => {
    const lines = block.split('\n');
    const items = lines.filter((line) => line.startsWith('- ')).map((line) => el('li', inline(line.slice(2))));
    const words = lines.filter((line) => !line.startsWith('- ')).join(' ');
    return el('div', words && el('p', inline(words)), items.length > 0 && el('ul', items));
  });
}

function inline(text) {
  return text.split(/(\*\*[^*]+\*\*|\*[^*\s][^*]*\*)/).map((part) => {
    if (part.startsWith('**') && part.length > 4) return el('strong', part.slice(2, -2));
    if (part.startsWith('*') && part.length > 2) return el('em', part.slice(1, -1));
    return part;
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// A heatmap over a photo
// ---------------------------------------------------------------------------------------------------------------------

const COLOURS = {
  inferno: ['000004', '1f0c48', '550f6d', '88226a', 'ba3655', 'e35933', 'f98c0a', 'f9c932', 'fcffa4'],
  viridis: ['440154', '472d7b', '3b528b', '2c728e', '21918c', '28ae80', '5ec962', 'addc30', 'fde725'],
  jet: ['000080', '0000ff', '0080ff', '00ffff', '80ff80', 'ffff00', 'ff8000', 'ff0000', '800000'],
  grey: ['000000', 'ffffff'],
};

/** 256 colours between those of a colour map, each a pixel as a canvas keeps it: opaque, blue, green, red. */
function colourTable(hexes) {
  const points = hexes.map((hex) => [4, 2, 0].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (points.length - 1);
    const left = Math.min(Math.floor(place), points.length - 2);
    const mixed = points[left].map((from, at) => Math.round(from + (points[left + 1][at] - from) * (place - left)));
    return mixed.reduce((pixel, byte) => pixel * 256 + byte, 255);
  });
}

const TABLES = Object.fromEntries(Object.entries(COLOURS).map(([name, hexes]) => [name, colourTable(hexes)]));

/** Draw a small grey map in colours, scaled up smoothly before it is coloured. */
function paint(canvas, map, colours) {
  const { width, height } = canvas;
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.imageSmoothingQuality = 'high';
  context.drawImage(map, 0, 0, width, height);
  const image = context.getImageData(0, 0, width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const table = TABLES[colours];
  for (let at = 0; at < pixels.length; at++) pixels[at] = table[pixels[at] & 255];
  context.putImageData(image, 0, 0);
}

/** A photo with a heatmap as a layer of its own; its opacity is the style `--heat`. */
class Picture {
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

  show(probe, map, colours) {
    const drawn = map && !probe.skipped && !probe.blank;
    this.#canvas.hidden = !drawn;
    if (drawn) paint(this.#canvas, map, colours);
    const blank = probe.blank ? 'blank: no contrast' : '';
    this.#note.textContent = probe.skipped ? 'skipped: values were not finite' : blank;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Curves
// ---------------------------------------------------------------------------------------------------------------------

/**
 * A chart whose places along the x axis are looks, each line with its band, chance level and points.
 *
 * Lines are stretched with their box; strokes and points, drawn as strokes of no length, are not.
 *
 * @param lines [{name: 'a' or 'b', points: [{x, value, low, high, chance, state}]}], x counted in looks
 * @param count how many looks there are
 * @param threshold a level to mark, or null
 */
function chart(lines, count, threshold) {
  const points = lines.flatMap((line) => line.points);
  const levels = points.flatMap((point) => [point.value, point.low, point.high, point.chance]);
  const shown = levels.filter((level) => level != null);
  const low = Math.min(0, ...shown);
  const high = Math.max(0.1, threshold ?? 0, ...shown);
  const ticks = ticksBetween(low, high);
  const x = (at) => ((1000 * at) / Math.max(1, count - 1)).toFixed(1);
  const y = (level) => (100 * (1 - (level - low) / (high - low))).toFixed(1);
  const path = (places) => `M${places.map(([at, level]) => `${x(at)} ${y(level)}`).join('L')}`;
  const line = (name, places) => places.length > 0 && svg('path', { class: name, d: path(places) });
  const along = (name, level) => svg('path', { class: name, d: `M0 ${y(level)}H1000` });

  const drawn = lines.flatMap(({ name, points: all }) => {
    const bounded = all.filter((point) => point.low != null && point.high != null);
    const upper = bounded.map((point) => [point.x, point.high]);
    const lower = bounded.map((point) => [point.x, point.low]).reverse();
    const chances = all.filter((point) => point.chance).map((point) => [point.x, point.chance]);
    return [
      line(`band run-${name}`, [...upper, ...lower]),
      line(`chance run-${name}`, chances),
      line(`curve run-${name}`, all.map((point) => [point.x, point.value])),
      all.map((point) =>
        svg('path', {
          class: point.state === 'alarm' ? 'point alarm' : `point run-${name}`,
          d: `M${x(point.x)} ${y(point.value)}h.01`,
        }),
      ),
    ];
  });
  const labels = ticks.map((tick) => {
    const label = el('span.tick', short(tick));
    label.style.top = `${y(tick)}%`;
    return label;
  });
  return el('div.plot',
    labels,
    svg(
      'svg',
      { viewBox: '0 0 1000 100', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      ticks.map((tick) => along('grid', tick)),
      threshold != null && along('threshold', threshold),
      drawn,
    ),
  );
}

/** Round levels, at most five, between two values. */
function ticksBetween(low, high) {
  const size = [0.05, 0.1, 0.2, 0.25, 0.5, 1].find((each) => (high - low) / each < 4) ?? high - low;
  const first = Math.ceil(low / size - 1e-9);
  const count = Math.floor(high / size + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, index) => (first + index) * size);
}

/** The curves of the audit: a measure of it over the looks. */
const CURVES = [
  {
    title: 'Gap of the audit',
    about: 'accuracy lost to another class’s background; band: 95 %; dashed: alarm level',
    term: 'bg_gap',
    measure: (audit) => audit?.gap,
    estimate: judged,
    threshold: (audit) => audit.threshold,
    state: (audit) => audit.verdict.state,
    missing: 'not measured',
  },
  {
    title: 'Heat on object',
    about: 'share of the heat that lies on the object; dotted: by chance',
    term: 'heat_on_object',
    measure: (audit) => Object.keys(audit?.measures ?? {}).find((name) => name.startsWith('heat_on_object')),
    estimate: overall,
    missing: 'not measured: no masks',
  },
];

/** The chart of a curve for some runs over the steps of all of them. */
function curveOf(curve, runs, steps) {
  const lines = runs.map((run, index) => {
    const points = run.looks.map(({ step, audit }) => {
      const estimate = curve.estimate(audit, curve.measure(audit));
      return estimate && { ...estimate, x: steps.indexOf(step), state: curve.state?.(audit) };
    });
    return { name: 'ab'[index], points: points.filter((point) => point?.value != null) };
  });
  const { audit } = runs.flatMap((run) => run.looks).find((look) => look.audit) ?? {};
  return chart(lines, steps.length, (audit && curve.threshold?.(audit)) ?? null);
}

// ---------------------------------------------------------------------------------------------------------------------
// What is said about a look in words and tables
// ---------------------------------------------------------------------------------------------------------------------

/** A button that leads to what a number means. */
function term(name, text = name) {
  return el('button.term', { type: 'button', title: 'What this number means', onclick: () => explain(name) }, text);
}

function explain(measure) {
  const plain = measure.replace(/_estimated$/, '');
  const name = plain.endsWith('_probability') ? '..._probability' : plain;
  const glossary = document.querySelector('.screen .glossary');
  const entry = glossary.querySelector(`[data-term="${CSS.escape(name)}"]`);
  glossary.open = true;
  glossary.querySelectorAll('.marked').forEach((node) => node.classList.remove('marked'));
  entry?.classList.add('marked');
  (entry ?? glossary).scrollIntoView({ block: entry ? 'center' : 'start', behavior: 'smooth' });
  glossary.querySelector('summary').focus({ preventScroll: true });
}

function verdict(run, look, name, whole) {
  const { audit } = look;
  const blocks = audit ? markdown(audit.verdict.text) : [];
  const meaning = audit && term(UNJUDGED.includes(audit.verdict.state) ? 'verdict' : audit.gap, 'What it means');
  const masks = `masks ${audit?.masks === 'none' ? 'absent' : audit?.masks}`;
  return el(
    'section',
    { class: `verdict ${audit?.verdict.state.replaceAll(' ', '-') ?? ''}`, 'aria-label': `Verdict on ${run.name}` },
    el('header',
      el('h2', { class: `key run-${name}` }, run.title),
      el('span.state', audit?.verdict.state ?? 'no audit'),
      el('span.facts', [moment(look), ...(audit ? [plural(audit.images, 'image'), masks] : [])].join(' · ')),
    ),
    el('div.words',
      audit && (whole ? [blocks, notes(audit)] : [blocks[0], el('p', gapInWords(audit), meaning)]),
      !audit && el('p', run.looks.some((each) => each.audit) ? 'No audit at this look.' : NO_AUDIT),
    ),
  );
}

const UNJUDGED = ['too few images', 'not learnt'];
const NO_AUDIT =
  'This run has no audit: it needs labelled images of two classes or more, and CAMMonitor(audit=True). ' +
  'The heatmaps below show where the network looks, not whether it is right for the wrong reasons.';

/** What was measured; nothing where it says nothing. */
function gapInWords(audit) {
  if (UNJUDGED.includes(audit.verdict.state)) return '';
  const gap = judged(audit, audit.gap);
  if (gap == null) return 'The gap could not be measured. ';
  return (
    `Another class’s ${audit.masks === 'none' ? 'edge' : 'background'} costs ${digits(100 * gap.value, 0)} of 100 ` +
    `answers${gap.label === 'all' ? '' : ` of the class ${gap.label}`} (${digits(gap.value)} ${interval(gap)}). `
  );
}

const BY_CLASS = ['accuracy', 'bg_gap', 'ring_gap', 'recolour_gap', 'background_only', 'object_only', 'heat_on_object'];

/** A table of rows, the first cell of each its name. */
function table(heads, rows, kind) {
  const row = ([name, ...cells]) =>
    el('tr', el('th', { scope: 'row' }, name), cells.map((cell) => el('td', cell)));
  const head = heads.length > 0 && el('thead', el('tr', heads.map((text) => el('th', text))));
  return el('table', { class: kind }, head, el('tbody', rows.map(row)));
}

/** A value with its interval, marked where all of it is above a threshold. */
function shown(estimate, threshold = Infinity) {
  if (estimate?.value == null) return '–';
  const high = estimate.low > threshold;
  return el('span', { class: high && 'high' }, digits(estimate.value), ' ', el('small', interval(estimate)));
}

/** The main measures, one row a class. */
function classTable({ measures, gap, threshold }) {
  const names = Object.keys(measures).filter((name) => BY_CLASS.includes(name.replace(/_estimated$/, '')));
  const classes = [...new Set(names.flatMap((name) => Object.keys(measures[name].per_class)))];
  const cell = (name, label) => {
    const { overall: all, per_class: of } = measures[name];
    return shown(label === undefined ? all : of[label], name === gap ? threshold : Infinity);
  };
  const row = (label) => [label ?? 'all', ...names.map((name) => cell(name, label))];
  return table(['class', ...names.map((name) => term(name))], [undefined, ...classes].map(row));
}

/** All measures over all images. */
function measureTable({ measures }) {
  const row = ([name, { overall: all }]) => [term(name), shown(all), digits(all.chance), all.count];
  const rows = Object.entries(measures).map(row);
  return table(['measure', 'value', 'chance', 'images'], rows);
}

function settingsTable({ version, versions, settings }) {
  const rows = Object.entries({ cam_callbacks: version, ...versions, ...settings });
  return table([], rows.map(([name, value]) => [name, value === null ? 'None' : String(value)]), 'settings');
}

const notes = (audit) => (audit.notes ?? []).map((note) => el('p', note));

/** The picture of exchanged backgrounds of a look. */
function swaps(run, step) {
  const node = el('div.swaps', '…');
  run.swaps(step).then(decoded).then(
    (picture) => {
      if (picture) picture.alt = 'Objects on backgrounds of their own and of another class';
      node.replaceChildren(picture ?? 'No picture of exchanged backgrounds at this look.');
    },
    (error) => node.replaceChildren(error.message),
  );
  return node;
}

/** What stands under the probes of a run: [title, a function that makes the content]. */
function appendix(run, look) {
  const { audit } = look;
  const { settings } = run.timeline;
  const ofAudit = [
    ['The whole verdict', () => el('div.words', markdown(audit.verdict.text), notes(audit))],
    ['Numbers by class', () => classTable(audit)],
    ['Exchanged backgrounds', () => swaps(run, look.step)],
    ['All numbers', () => measureTable(audit)],
  ];
  return [...(audit ? ofAudit : []), ...(settings ? [['Settings and versions', () => settingsTable(settings)]] : [])];
}

// ---------------------------------------------------------------------------------------------------------------------
// Probes
// ---------------------------------------------------------------------------------------------------------------------

/** What probes can be sorted by: a key of the state, the words for it, the number. */
const NUMBERS = [
  ['', 'order of the data', (probe, index) => index],
  ['true', 'probability of the true class', (probe) => probe.probability_target],
  ['predicted', 'probability of the predicted class', (probe) => probe.probability_predicted],
  ['heat', 'heat on object', (probe) => probe.heat_on_object],
  ['over', 'heat on object − chance', (probe) => difference(probe.heat_on_object, probe.heat_on_object_chance)],
  ['largest', 'largest activation', (probe) => probe.largest],
  ['score', 'score that is explained', (probe) => probe.score],
  ['error', 'estimated error of the map', (probe) => probe.error],
  ['passes', 'forward passes', (probe) => probe.passes],
];

const difference = (value, other) => (value == null || other == null ? null : value - other);

/** The indices of the probes that the state asks for, in its order; those without the number come last. */
function chosen(look, state) {
  const [, , number] = NUMBERS.find(([key]) => key === state.sort);
  const values = look.probes.map(number);
  const sign = state.sort && state.down ? -1 : 1;
  const missing = (index) => Number(values[index] == null);
  return [...look.probes.keys()]
    .filter((index) => !state.class || String(look.probes[index].target) === state.class)
    .filter((index) => !state.wrong || isMistake(look.probes[index]))
    .sort((one, other) => missing(one) - missing(other) || sign * (values[one] - values[other]) || one - other);
}

const cardOf = new WeakMap();
const CARDS_IN_VIEW = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const card = cardOf.get(target);
      card.inView = isIntersecting;
      if (isIntersecting) card.paint?.();
    }
  },
  { rootMargin: '200px' },
);

/** A probe at a look: photo and heat (painted while in view), labels with probabilities, heat on the object beside chance. */
class Card {
  #labels = el('span.labels');
  #extra = el('span.extra');

  constructor(index, photo, open) {
    this.index = index;
    this.picture = new Picture(photo);
    this.node = el('button.card', { type: 'button', 'data-probe': index, onclick: open },
      this.picture.node,
      this.#labels,
      this.#extra,
    );
    cardOf.set(this.node, this);
    CARDS_IN_VIEW.observe(this.node);
  }

  show(look, colours) {
    const probe = look.probes[this.index];
    this.paint = () => this.picture.show(probe, look.maps[this.index], colours);
    if (this.inView) this.paint();
    const { target, predicted } = probe;
    const wrong = isMistake(probe);
    const said = wrong ? '✗ said' : 'said';
    this.node.classList.toggle('mistake', wrong);
    this.#labels.replaceChildren(
      ...(target == null ? [] : label('true', className(look, target), probe.probability_target)),
      ...(predicted == null ? [] : label(said, className(look, predicted), probe.probability_predicted)),
      ...(target == null && predicted == null ? label('score', '', probe.score) : []),
    );
    const explained = probe.explained != null && probe.explained !== probe.target;
    this.#extra.replaceChildren(
      probe.heat_on_object == null ? '' : heatBar(probe),
      explained ? el('span.why', `heat of: ${className(look, probe.explained)}`) : '',
    );
  }
}

const label = (what, name, probability) => [
  el('span.what', what),
  el('span.name', { title: name }, name),
  el('span.number', digits(probability)),
];

/** Heat on the object as a bar, with a mark where it would be by chance. */
function heatBar({ heat_on_object: heat, heat_on_object_chance: chance }) {
  const bar = el('span.amount');
  bar.style.width = `${100 * heat}%`;
  const mark = chance != null && el('span.mark');
  if (mark) mark.style.left = `${100 * chance}%`;
  const words = `heat on object ${digits(heat)}${chance == null ? '' : `, by chance ${digits(chance)}`}`;
  return el('span.heat', { title: words },
    el('span.what', 'on object'),
    el('span.number', digits(heat)),
    el('span.bar', bar, mark),
  );
}

/** The probes of one run, and below them its tables. */
class Pane {
  #cards = [];
  #facts = el('span.facts');
  #grid = el('div.cards');
  #none = el('p.none');
  #appendix = el('div.appendix');

  constructor(run, name, open) {
    Object.assign(this, { run, open });
    this.node = el(
      'section',
      { class: 'pane', 'aria-label': `Probes of ${run.name}` },
      el('header', el('h2', { class: `key run-${name}` }, run.title), this.#facts),
      this.#grid,
      this.#none,
      this.#appendix,
    );
  }

  show(look, order, state) {
    this.#makeCards(look);
    const all = look.probes.length;
    const count = `${order.length < all ? `${order.length} of ` : ''}${plural(all, 'probe')}`;
    this.#facts.textContent = [moment(look), count, look.layer, look.method].filter(Boolean).join(' · ');
    const cards = order.map((index) => this.#cards[index]).filter(Boolean);
    for (const card of cards) card.show(look, state.colours);
    const nodes = cards.map(({ node }) => node);
    if (nodes.some((node, at) => node !== this.#grid.children[at]) || nodes.length !== this.#grid.children.length) {
      const focused = document.activeElement;
      this.#grid.replaceChildren(...nodes);
      if (nodes.includes(focused)) focused.focus({ preventScroll: true });
    }
    const noPhotos = look.photos.length > 0 ? '' : 'The photos of the probes were not kept: heatmaps only.';
    this.#none.textContent = nodes.length > 0 ? noPhotos : 'No probe is of this kind at this look.';
    this.#showAppendix(look.step);
  }

  #makeCards({ probes, photos }) {
    if (this.#cards.length === probes.length && this.photos === photos) return;
    this.photos = photos;
    for (const { node } of this.#cards) CARDS_IN_VIEW.unobserve(node);
    this.#cards = probes.map((_, index) => new Card(index, photos[index], () => this.open(index)));
  }

  /** Tables and the picture of swaps, each staying open or closed as it was, and made when it is open. */
  #showAppendix(step) {
    if (this.shown === `${step}/${this.run.looks.length}`) return;
    this.shown = `${step}/${this.run.looks.length}`;
    const open = [...this.#appendix.querySelectorAll('details[open]')].map((each) => each.dataset.title);
    const sections = appendix(this.run, this.run.at(step)).map(([title, make]) => {
      const content = el('div.scroll');
      const fillIn = () => content.childElementCount === 0 && content.append(make());
      const attributes = { 'data-title': title, open: open.includes(title), ontoggle: fillIn };
      if (attributes.open) fillIn();
      return el('details', attributes, el('summary', title), content);
    });
    this.#appendix.replaceChildren(...sections);
  }
}

/** Call back once, when a node is first seen. */
function whenSeen(node, callback, root = null) {
  const observer = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      callback();
    },
    { root, rootMargin: '100px' },
  );
  observer.observe(node);
}

/** One probe over all looks, its channels now, the swaps of the audit. */
class ProbeDialog {
  #title = el('h2', { id: 'probe-title' });
  #content = el('div.content');
  #shown = '';

  constructor(onClose, goTo) {
    this.goTo = goTo;
    this.node = el('dialog.probe', { 'aria-labelledby': 'probe-title', onclose: onClose },
      el('header', this.#title, el('button', { type: 'button', onclick: () => this.node.close() }, 'Close (Esc)')),
      this.#content,
    );
    this.node.addEventListener('click', (event) => event.target === this.node && this.node.close());
  }

  /** Show probe `index` of some runs, each with the look that is current: [{run, name, look}]. */
  show(sides, index, colours) {
    const probe = sides[0].look.probes[index];
    if (!probe) return this.hide();
    this.#title.textContent = `Probe ${index + 1}: ${className(sides[0].look, probe.target)}`;
    const what = [index, colours, ...sides.map(({ run }) => `${run.name}/${run.looks.length}`)].join('\n');
    if (what !== this.#shown) {
      this.#shown = what;
      this.sections = sides.map((side) => this.#section(side, index, colours));
      this.#content.replaceChildren(...this.sections.map(({ node }) => node));
    }
    if (!this.node.open) this.node.showModal();
    this.sections.forEach((section, at) => this.#mark(section, sides[at], index, colours));
  }

  hide() {
    if (this.node.open) this.node.close();
  }

  #section({ run, name }, index, colours) {
    const strip = el('div.strip');
    const tiles = run.looks.map(({ step, epoch }) => this.#tile(run, step, epoch, index, colours, strip));
    strip.append(...tiles);
    const now = el('div.now');
    const node = el('section', el('h3', { class: `key run-${name}` }, run.title), strip, now);
    return { node, strip, tiles, now };
  }

  #tile(run, step, epoch, index, colours, strip) {
    const words = el('span.number', '…');
    const when = epoch == null ? `step ${step}` : `epoch ${epoch}`;
    const empty = el('span.picture');
    const tile = el('button.tile', { type: 'button', onclick: () => this.goTo(step) }, empty, words, el('small', when));
    whenSeen(tile, async () => {
      const look = await run.look(step).catch(() => null);
      const probe = look?.probes[index];
      if (!probe) return void (words.textContent = 'not there');
      const picture = new Picture(look.photos[index], 120);
      picture.show(probe, look.maps[index], colours);
      empty.replaceWith(picture.node);
      words.textContent = digits(probe.probability_target ?? probe.probability_predicted ?? probe.score);
      tile.classList.toggle('mistake', isMistake(probe));
    }, strip);
    return tile;
  }

  /** Mark the current look in the strip, and show its channels. */
  #mark({ strip, tiles, now }, { run, look }, index, colours) {
    const at = run.steps.indexOf(look.step);
    tiles.forEach((tile, place) => tile.setAttribute('aria-current', place === at));
    if (now.dataset.step === String(look.step) && now.dataset.colours === colours) return;
    Object.assign(now.dataset, { step: look.step, colours });
    const tile = tiles[at];
    strip.scrollLeft = tile.offsetLeft - strip.offsetLeft - (strip.clientWidth - tile.offsetWidth) / 2;
    const probe = look.probes[index];
    const exchanged = run.at(look.step).audit ? swaps(run, look.step) : 'No audit at this look.';
    now.replaceChildren(
      el('div', el('h4', 'This look'), facts(look, probe)),
      el('div', el('h4', 'Channels of largest weight'), channels(look, index, colours)),
      el('div.whole', el('h4', 'Exchanged backgrounds: other images, those of the audit that lose most'), exchanged),
    );
  }
}

function facts(look, probe) {
  const { target, predicted, heat_on_object: heat, heat_on_object_chance: chance } = probe;
  const rows = [
    ['look', moment(look)],
    ['true class', target != null && `${className(look, target)} ${digits(probe.probability_target)}`],
    ['predicted', predicted != null && `${className(look, predicted)} ${digits(probe.probability_predicted)}`],
    ['heat on object', heat != null && `${digits(heat)}${chance == null ? '' : ` (by chance ${digits(chance)})`}`],
    ['largest activation', short(probe.largest)],
    ['error of the map', short(probe.error)],
    ['forward passes', short(probe.passes)],
  ];
  return el('dl.facts', rows.filter(([, value]) => value).map(([name, value]) => [el('dt', name), el('dd', value)]));
}

/** The channels of a probe that weigh most: each as a map, with its index and weight. */
function channels(look, index, colours) {
  const pictures = look.channels?.[index] ?? [];
  if (pictures.length === 0) return el('p', 'The channels of this look were not kept.');
  const figures = pictures.map((source, place) => {
    const [channel, weight] = look.probes[index].channels?.[place] ?? ['?', null];
    const canvas = el('canvas', { width: 112, height: 112 });
    decoded(source).then((map) => map && paint(canvas, map, colours));
    return el('figure', canvas, el('figcaption', `${channel}`, el('small', `weight ${short(weight)}`)));
  });
  return el('div.channels', figures);
}

// ---------------------------------------------------------------------------------------------------------------------
// The timeline: curves over a slider
// ---------------------------------------------------------------------------------------------------------------------

class Timeline {
  curves = el('section.timeline', { 'aria-label': 'Curves of the audit' });
  #range = el('input', { type: 'range', min: 0, step: 1, 'aria-label': 'Look' });
  #where = el('output.where');
  #play = el('button.play', { type: 'button' });
  #readouts = [];

  /** @param goTo called with the place of a look among `steps` */
  constructor(goTo, onPlay) {
    this.goTo = goTo;
    this.#range.addEventListener('input', () => goTo(Number(this.#range.value)));
    this.#play.addEventListener('click', onPlay);
    this.slider = el('div.slider',
      el('span.buttons',
        this.#play,
        el('button', { type: 'button', 'aria-label': 'Look before', onclick: () => goTo(this.at - 1) }, '‹'),
        el('button', { type: 'button', 'aria-label': 'Next look', onclick: () => goTo(this.at + 1) }, '›'),
      ),
      this.#range,
      this.#where,
    );
  }

  /** Draw the curves of some runs over the steps of all of them. */
  draw(runs, steps) {
    Object.assign(this, { runs, steps });
    this.#range.max = Math.max(0, steps.length - 1);
    this.#readouts = [];
    this.curves.hidden = !runs.some((run) => run.looks.some((look) => look.audit));
    this.curves.replaceChildren(...CURVES.map((curve) => this.#row(curve)));
  }

  #row(curve) {
    const plot = curveOf(curve, this.runs, this.steps);
    plot.append(el('span.now'));
    const goTo = (event) => {
      if (event.buttons !== 1) return;
      const { left, width } = plot.getBoundingClientRect();
      this.goTo(Math.round(((event.clientX - left) / width) * (this.steps.length - 1)));
    };
    plot.addEventListener('pointerdown', goTo);
    plot.addEventListener('pointermove', goTo);
    const readout = el('div.readout');
    this.#readouts.push([readout, curve]);
    return el('div.curve-row',
      el('div.title', term(curve.term, curve.title), el('small', curve.about)),
      plot,
      readout,
    );
  }

  /** Mark the look at a place among the steps. */
  mark(at, playing) {
    this.at = at;
    this.#range.value = at;
    this.#play.textContent = playing ? 'Pause' : 'Play';
    const place = at / Math.max(1, this.steps.length - 1);
    for (const line of this.curves.querySelectorAll('.now')) line.style.left = `${100 * place}%`;
    const look = this.runs[0].at(this.steps[at]);
    this.#where.replaceChildren(el('strong', moment(look)), el('small', `look ${at + 1} of ${this.steps.length}`));
    this.#range.setAttribute('aria-valuetext', moment(look));
    for (const [readout, curve] of this.#readouts) {
      readout.replaceChildren(...this.runs.map((run, index) => this.#reading(curve, run, index)));
    }
  }

  #reading(curve, run, index) {
    const { audit } = run.at(this.steps[this.at]);
    const estimate = curve.estimate(audit, curve.measure(audit));
    const value = estimate?.value != null;
    return el('p',
      el('span', { class: `key run-${'ab'[index]}` }, el('strong', value ? digits(estimate.value) : '–')),
      el('small', value ? interval(estimate) : curve.missing),
      value && (estimate.label ?? 'all') !== 'all' && el('small.of', { title: estimate.label }, estimate.label),
      value && estimate.chance != null && estimate.chance !== 0 && el('small', `chance ${digits(estimate.chance)}`),
    );
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The whole
// ---------------------------------------------------------------------------------------------------------------------

/** The state, as it stands in the address: only what differs from this. */
const DEFAULTS = {
  run: '', // '': the first
  monitor: '',
  vs: '', // the second run; '': none
  step: '', // '': the last
  probe: '', // whose history is open
  side: '', // 'b': the probe is of the second run
  sort: '',
  down: '', // '1': largest first
  class: '',
  wrong: '', // '1': mistakes only
  colours: 'inferno',
  heat: '50', // opacity in percent
};

class View {
  #source;
  #address;
  #runs = [];
  #panes = [];
  #drawing = null;
  #again = false;
  #playing = false;
  #remembering = 0;

  constructor(root, source, { address = new HashAddress() } = {}) {
    this.#source = source;
    this.#address = address;
    this.#build(root);
    this.state = this.#fromAddress();
    address.onChange(() => this.#open(this.#fromAddress()));
    document.addEventListener('keydown', (event) => this.#key(event));
  }

  #fromAddress() {
    const found = Object.entries(this.#address.read()).filter(([key]) => Object.hasOwn(DEFAULTS, key));
    const state = { ...DEFAULTS, ...Object.fromEntries(found) };
    if (!Object.hasOwn(COLOURS, state.colours)) state.colours = DEFAULTS.colours;
    if (!NUMBERS.some(([key]) => key === state.sort)) state.sort = DEFAULTS.sort;
    return state;
  }

  // -- what there is on the page

  #build(root) {
    const set = (key) => (event) => this.update({ [key]: event.target.value });
    const flip = (key) => this.update({ [key]: this.state[key] ? '' : '1' });
    const select = (key, change = set(key)) => el('select', { name: key, onchange: change });
    const named = (text, node) => el('label', el('span', text), node);
    this.parts = {
      run: select('run', (event) => this.#open({ ...this.state, run: event.target.value, probe: '' })),
      vs: select('vs', (event) => this.#open({ ...this.state, vs: event.target.value, probe: '' })),
      monitor: select('monitor', (event) => this.#open({ ...this.state, monitor: event.target.value, probe: '' })),
      class: select('class'),
      sort: select('sort'),
      colours: select('colours'),
      wrong: el('input', { type: 'checkbox', name: 'wrong', onchange: () => flip('wrong') }),
      down: el('button.direction', { type: 'button', onclick: () => flip('down') }),
      heat: el('input', { type: 'range', name: 'heat', min: 0, max: 100, step: 5, oninput: set('heat') }),
      message: el('p.message', { role: 'status' }),
      verdicts: el('div.columns.verdicts'),
      panes: el('div.columns.panes'),
    };
    const { parts } = this;
    this.timeline = new Timeline((place) => this.#goToPlace(place), () => this.#play());
    this.dialog = new ProbeDialog(
      () => this.state.probe && this.update({ probe: '', side: '' }),
      (step) => this.update({ step: String(step) }),
    );
    fill(parts.sort, NUMBERS.map(([key, words]) => [key, words]), '');
    fill(parts.colours, same(Object.keys(COLOURS)), '');
    parts.monitorLabel = named('Monitor', parts.monitor);
    parts.vsLabel = named('beside', parts.vs);
    this.main = el('main',
      parts.verdicts,
      this.timeline.curves,
      el('div.controls',
        this.timeline.slider,
        el('div.toolbar',
          named('Class', parts.class),
          el('label', parts.wrong, el('span', 'Mistakes only')),
          el('span.group', named('Sort by', parts.sort), parts.down),
          el('span.space'),
          named('Heat', parts.heat),
          named('Colours', parts.colours),
        ),
      ),
      parts.panes,
      glossary(),
    );
    this.screen = el('div.screen',
      el('header.top',
        this.#source.complete && el('h1', 'CAM report'),
        named('Run', parts.run),
        parts.vsLabel,
        parts.monitorLabel,
        el('span.space'),
        el('button', { type: 'button', onclick: (event) => this.#copyLink(event.target) }, 'Copy link'),
        el('button', { type: 'button', onclick: () => this.#toggleTheme() }, 'Light / dark'),
      ),
      parts.message,
      this.main,
      skippedFiles(this.#source),
    );
    root.classList.add('cam');
    root.replaceChildren(this.screen, this.dialog.node);
  }

  // -- reading

  open() {
    return this.#open(this.state);
  }

  /** Show other runs, or read the same ones anew. */
  async #open(state) {
    const again = state === this.state;
    this.state = state;
    try {
      const found = await this.#source.runs();
      if (state !== this.state) return; // another one was opened meanwhile
      if (found.length === 0) return void this.#showNothing(NOTHING);
      const runs = this.#choose(found);
      const changed = await Promise.all(runs.map((run) => run.read()));
      if (state !== this.state) return;
      const empty = runs.find((run) => run.looks.length === 0);
      if (empty) return void this.#showNothing(`${empty.name}: no whole look is there yet.`);
      this.main.hidden = false;
      this.#say(this.#missing(found, runs[0]));
      const others = String(runs.map(keyOf)) !== String(this.#runs.map(keyOf));
      if (others || changed.includes(true)) this.#take(runs, others);
      else if (again) return;
      this.#rememberSoon();
      await this.update({});
    } catch (error) {
      if (state !== this.state) return;
      if (again && this.#runs.length > 0) this.#say(error.message); // what is shown stays until the next poll
      else this.#showNothing(error.message);
    }
  }

  #showNothing(why) {
    this.#runs = [];
    this.main.hidden = true;
    this.dialog.hide();
    this.#say(why);
  }

  /** What a link asks for and is not there. */
  #missing(found, { name }) {
    const isGone = (asked) => asked && !found.some(({ run }) => run === asked);
    const gone = [this.state.run, this.state.vs].filter(isGone);
    const instead = isGone(this.state.run) ? ` Shown instead: ${name}.` : '';
    return gone.length > 0 ? `Not in this log folder: ${gone.join(', ')}.${instead}` : '';
  }

  /** The runs that the state asks for, of those that were found, listed for the user too. */
  #choose(found) {
    const { state } = this;
    const runOf = (name) => found.find(({ run }) => run === name);
    const first = runOf(state.run) ?? found[0];
    const second = state.vs === first.run ? undefined : runOf(state.vs);
    const monitorOf = ({ monitors }, wanted) => (monitors.includes(wanted) ? wanted : monitors[0]);
    const monitor = monitorOf(first, state.monitor);
    this.#list(found, first, second, monitor);
    return [first, second].filter(Boolean).map((each) => {
      const run = new Run(this.#source, each.run, monitorOf(each, monitor));
      return this.#runs.find((known) => keyOf(known) === keyOf(run)) ?? run;
    });
  }

  #list(found, first, second, monitor) {
    const { parts } = this;
    const names = found.map(({ run }) => run);
    fill(parts.run, same(names), first.run);
    const others = names.filter((name) => name !== first.run);
    fill(parts.vs, [['', 'no other run'], ...same(others)], second?.run ?? '');
    fill(parts.monitor, same(first.monitors), monitor);
    parts.vsLabel.hidden = others.length === 0;
    parts.monitorLabel.hidden = first.monitors.length < 2;
  }

  /** Draw what depends on the runs, not on the look. Who was at the last look follows to a new one. */
  #take(runs, others) {
    const { state } = this;
    const atEnd = state.step !== '' && Number(state.step) === this.steps?.at(-1);
    if (others) {
      const differ = new Set(runs.map(({ monitor }) => monitor)).size > 1;
      for (const run of runs) run.title = differ ? `${run.name}, ${run.monitor}` : run.name;
      const open = (index) => (probe) => this.update({ probe: String(probe), side: index === 1 ? 'b' : '' });
      this.#panes = runs.map((run, index) => new Pane(run, 'ab'[index], open(index)));
      this.parts.panes.replaceChildren(...this.#panes.map(({ node }) => node));
    }
    this.#runs = runs;
    this.steps = [...new Set(runs.flatMap((run) => run.steps))].sort((one, other) => one - other);
    if (atEnd && !others) state.step = String(this.steps.at(-1));
    this.timeline.draw(runs, this.steps);
    this.screen.classList.toggle('compared', runs.length > 1);
  }

  /** Ask again for new looks, while the page is seen. */
  poll(pause) {
    setInterval(() => {
      if (!document.hidden && this.screen.clientWidth > 0) this.#open(this.state);
    }, pause);
  }

  // -- drawing

  /** Change the state and draw it; resolves when the pictures are there. */
  update(changes) {
    Object.assign(this.state, changes);
    if (Object.keys(changes).length > 0) this.#rememberSoon();
    if (this.#runs.length === 0 || this.steps.length === 0) return Promise.resolve();
    this.#drawFrame();
    if (this.#drawing) {
      this.#again = true;
    } else {
      this.#drawing = this.#drawLooks().finally(() => (this.#drawing = null));
    }
    return this.#drawing;
  }

  #rememberSoon() {
    clearTimeout(this.#remembering);
    this.#remembering = setTimeout(() => this.#remember(), ADDRESS_MS);
  }

  #remember() {
    if (this.#runs.length === 0) return;
    const [{ name, monitor }] = this.#runs;
    const differing = Object.entries({ ...this.state, run: name, monitor, step: String(this.steps[this.#place]) });
    this.#address.write(Object.fromEntries(differing.filter(([key, value]) => value !== DEFAULTS[key])));
  }

  get #place() {
    if (this.state.step === '') return this.steps.length - 1;
    const wanted = Number(this.state.step) || 0;
    const distances = this.steps.map((step) => Math.abs(step - wanted));
    return distances.indexOf(Math.min(...distances));
  }

  /** What is known without asking for a look: numbers, words, controls. */
  #drawFrame() {
    const { parts, state } = this;
    this.timeline.mark(this.#place, this.#playing);
    const step = this.steps[this.#place];
    parts.verdicts.replaceChildren(...this.#runs.map((run, index) => verdict(run, run.at(step), 'ab'[index], false)));
    this.screen.style.setProperty('--heat', Number(state.heat) / 100);
    this.dialog.node.style.setProperty('--heat', Number(state.heat) / 100);
    Object.assign(parts.wrong, { checked: state.wrong !== '' });
    for (const key of ['sort', 'colours', 'heat']) parts[key].value = state[key];
    parts.down.hidden = state.sort === '';
    parts.down.textContent = state.down ? '↓ largest first' : '↑ smallest first';
  }

  /** The looks, one request at a time: what is asked for meanwhile is drawn next. */
  async #drawLooks() {
    do {
      this.#again = false;
      const [runs, step] = [this.#runs, this.steps[this.#place]];
      try {
        const looks = await Promise.all(runs.map((run) => run.look(run.at(step).step)));
        if (runs === this.#runs) this.#showLooks(looks);
      } catch (error) {
        this.#say(error.message);
      }
    } while (this.#again);
    this.#prefetch();
  }

  #showLooks(looks) {
    const { state, parts } = this;
    const targets = [...new Set(looks[0].probes.map(({ target }) => target))].sort((one, other) => one - other);
    const classes = targets.map((target) => [String(target), className(looks[0], target)]);
    if (state.class && !classes.some(([target]) => target === state.class)) {
      state.class = '';
      this.#rememberSoon();
    }
    fill(parts.class, [['', 'all classes'], ...classes], state.class);
    parts.class.disabled = targets.length < 2;
    const shared = looks.length > 1 && this.#runs[0].sharesProbesWith(this.#runs[1]);
    const order = chosen(looks[0], state);
    for (const [index, pane] of this.#panes.entries()) {
      const look = looks[index];
      pane.show(look, index === 0 || shared ? order : chosen(look, state), state);
    }
    if (state.probe === '') return this.dialog.hide();
    const sides = looks.map((look, index) => ({ run: this.#runs[index], name: 'ab'[index], look }));
    const own = sides[state.side && sides.length > 1 ? 1 : 0];
    this.dialog.show(shared ? sides : [own], Number(state.probe), state.colours);
  }

  #prefetch() {
    const near = [this.#place + 1, this.#place - 1].filter((place) => place in this.steps);
    for (const place of near) {
      for (const run of this.#runs) run.look(run.at(this.steps[place]).step).catch(() => {});
    }
  }

  #say(text) {
    if (this.parts.message.textContent !== text) this.parts.message.textContent = text;
  }

  // -- acting

  #goToPlace(place) {
    const step = this.steps[Math.max(0, Math.min(place, this.steps.length - 1))];
    return this.update({ step: String(step) });
  }

  async #play() {
    this.#playing = !this.#playing;
    if (this.#playing && this.#place === this.steps.length - 1) this.#goToPlace(0);
    const pause = Math.max(100, Math.min(800, 12_000 / this.steps.length));
    while (this.#playing && this.#place < this.steps.length - 1) {
      await new Promise((done) => setTimeout(done, pause));
      if (this.#playing) await this.#goToPlace(this.#place + 1);
    }
    this.#playing = false;
    this.update({});
  }

  #key(event) {
    const typing = event.target.closest?.('input, select, textarea');
    if (event.ctrlKey || event.metaKey || event.altKey || typing || !this.steps?.length) return;
    const places = { ArrowLeft: this.#place - 1, ArrowRight: this.#place + 1, Home: 0, End: this.steps.length - 1 };
    if (event.key in places) this.#goToPlace(places[event.key]);
    else if (event.key === ' ' && !event.target.closest('button, summary')) this.#play();
    else return;
    event.preventDefault();
  }

  async #copyLink(button) {
    this.#remember();
    try {
      await navigator.clipboard.writeText(this.#address.url);
      button.textContent = 'Copied';
      setTimeout(() => (button.textContent = 'Copy link'), 1500);
    } catch {
      window.prompt('Copy this link:', this.#address.url); // where the browser keeps the clipboard to itself
    }
  }

  #toggleTheme() {
    const dark = this.theme ? this.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    this.setTheme(dark ? 'light' : 'dark');
  }

  setTheme(theme) {
    this.theme = theme;
    document.documentElement.style.colorScheme = theme;
  }
}

const keyOf = ({ name, monitor }) => `${monitor}/${name}`;

const NOTHING =
  'Nothing here yet: no run in this log folder was written with CAMMonitor, or its first look is still to come. ' +
  'Add it to the callbacks of a Trainer that logs to this folder: Trainer(callbacks=[CAMMonitor()]).';

/** Event files that were read in part, and those that were left out; empty where there are none. */
function skippedFiles({ skipped = [] }) {
  const kinds = [
    ['Read in part', skipped.filter(({ partly }) => partly)],
    ['Left out', skipped.filter(({ partly }) => !partly)],
  ];
  return kinds.filter(([, files]) => files.length > 0).map(([what, files]) =>
    el('details.skipped',
      el('summary', `${what}: ${plural(files.length, 'event file')}`),
      el('ul', files.map(({ file, why }) => el('li', `${file} ${why}`))),
    ),
  );
}

/**
 * Show runs in an element.
 *
 * @param root the element; what is in it is replaced
 * @param source an HttpSource or an EmbeddedSource
 * @param options `address`: where the state is kept, by default the hash of this page;
 *   `poll`: after how many milliseconds to ask for new looks again, by default never
 * @returns the view: `setTheme('dark' or 'light')`
 */
export async function show(root, source, options = {}) {
  const view = new View(root, source, options);
  await view.open();
  if (options.poll) view.poll(options.poll);
  if (source.complete) root.append(await printed(source));
  return view;
}

// ---------------------------------------------------------------------------------------------------------------------
// On paper
// ---------------------------------------------------------------------------------------------------------------------

/** All runs of a source, made to be printed: nothing to click, all open. */
async function printed(source) {
  const runs = [];
  for (const { run: name, monitors } of await source.runs()) {
    for (const monitor of monitors) {
      const run = new Run(source, name, monitor);
      await run.read();
      if (run.looks.length > 0) runs.push(await printedRun(run, monitors.length > 1));
    }
  }
  const terms = glossary();
  opened([terms]);
  return el('div.print', el('h1', 'CAM report'), opened(skippedFiles(source)), runs, terms);
}

function opened(details) {
  for (const each of details) each.open = true;
  return details;
}

async function printedRun(run, manyMonitors) {
  const last = run.looks.at(-1);
  const latest = [...run.looks].reverse().find((look) => look.audit) ?? last;
  const curves = latest.audit ? CURVES.map((curve) => [
    el('h3', curve.title, el('small', ` ${curve.about}`)),
    curveOf(curve, [run], run.steps),
  ]) : [];
  return el('article',
    el('h2.title', manyMonitors ? `${run.name}, ${run.monitor}` : run.name),
    verdict(run, latest, 'a', true),
    curves,
    el('h3', 'Heatmaps'),
    await printedProbes(run),
    appendix(run, latest).slice(latest.audit ? 1 : 0).map(([title, make]) => [el('h3', title), make()]),
  );
}

/** Each probe at the first, middle and last look. */
async function printedProbes(run) {
  const places = [...new Set([0, Math.floor((run.looks.length - 1) / 2), run.looks.length - 1])];
  const looks = await Promise.all(places.map((place) => run.look(run.steps[place])));
  const shown = looks.at(-1).probes.slice(0, TILES_PRINTED);
  const cells = shown.map((_, index) =>
    el('figure',
      looks.map((look) => printedTile(look, index)),
      el('figcaption', `true: ${className(looks.at(-1), shown[index].target)}`),
    ),
  );
  const total = looks.at(-1).probes.length;
  const words = `${looks.map(moment).join(', ')}; below each the probability of the true class.`;
  const part = total > shown.length ? ` The first ${shown.length} of ${total} probes.` : '';
  return [el('p', words + part), el('div.printed-probes', cells)];
}

function printedTile(look, index) {
  const picture = new Picture(look.photos[index], 120);
  const probe = look.probes[index];
  if (probe) picture.show(probe, look.maps[index], 'inferno');
  return el('span.tile', picture.node, el('small', digits(probe?.probability_target)));
}

// ---------------------------------------------------------------------------------------------------------------------
// What the numbers mean
// ---------------------------------------------------------------------------------------------------------------------

/** [name, definition, chance level] */
const TERMS = [
  [
    'verdict',
    'What was found. Suspicion: the lower end of a class’s gap is above the threshold at this look. Alarm: at two ' +
      'looks in a row. Warning: the same without masks, a weak test. No alarm: nothing was found; this does not ' +
      'mean that there is no bias. Too few images: fewer than 30 could be tested, nothing is judged. Not learnt: the ' +
      'accuracy is not yet clearly above that of always answering the most frequent class, nothing is judged.',
    '',
  ],
  ['interval', 'In square brackets: 95 % bootstrap interval over images. With few images [0, 0] is no certainty.', ''],
  [
    'accuracy',
    'Share of right answers. Cannot show a bias that the validation images share.',
    'share of the largest class',
  ],
  [
    'bg_gap',
    'Accuracy before a background of the same class − accuracy before one of another class. The main number: 0.3 ' +
      'means that 30 of 100 answers depend on the background.',
    '0',
  ],
  [
    'recolour_gap',
    'The same, but only mean and spread of the background’s colour are moved. As large as bg_gap: the colour is ' +
      'used; near 0: content or texture.',
    '0',
  ],
  [
    'ring_gap',
    'The same, the outer ring (1/8 of the side) exchanged. Only where there are no masks; matters above 0.15.',
    '0',
  ],
  [
    'background_only',
    'Accuracy with the object filled with the mean colour of the background. High: the background alone is ' +
      'enough.',
    'share of the largest class',
  ],
  [
    'object_only',
    'Accuracy with the background filled with the mean colour of all images. High: the object alone is enough.',
    'share of the largest class',
  ],
  [
    'colour_sensitivity_roll',
    'Right answers lost by rolled colour channels − those lost by a little brightness. Clean models use colour ' +
      'too: no alarm.',
    '0',
  ],
  ['colour_sensitivity_grey', 'The same with grey images.', '0'],
  ['delete_hot', 'Accuracy with the hottest half of the heatmap filled. Stays high: evidence is elsewhere too.', ''],
  ['border_share', 'Heat in the outer ring / all heat.', 'area of the ring'],
  [
    'heat_on_object',
    'Heat on the object’s mask / all heat. Above chance: heat follows the object. Evidence, not proof: a biased ' +
      'model may pass.',
    'the same on the masks of other images of the class',
  ],
  ['heat_over_area', 'heat_on_object − the object’s share of the area. Below 0: off the object.', '0'],
  ['rank_accuracy', 'Of as many hottest positions as the mask has, the share on the mask.', 'area of the mask'],
  ['pointing', 'How often the hottest position lies on the mask.', 'area of the mask'],
  [
    'data_colour_auc',
    'How well the mean colour outside the object tells the classes apart (AUC). Of the data, not of the model. ' +
      'From 0.85: ask how the data was collected.',
    '0.5',
  ],
  ['worst_group_accuracy', 'Smallest accuracy of a group of images.', ''],
  ['..._estimated', 'The same with foregrounds estimated by GrabCut, where no masks were given.', 'as without'],
  [
    '..._probability',
    'The gap in the probability of the true class instead of accuracy. Varies less; not judged.',
    '0',
  ],
  [
    'average_drop',
    'How much of the explained class’s probability is lost if only the hottest half of the image is kept. Low: the ' +
      'map holds the evidence.',
    '',
  ],
  ['increase_in_confidence', 'Share of images whose probability rises if only the hottest half of the image is kept.', ''],
  [
    'mean_activation_correlation',
    'Correlation of the heatmap with the plain mean of the layer’s channels. Near 1: it says little of the class.',
    '',
  ],
  [
    'heatmap',
    'Bright: parts whose features bring the explained class’s score up, each map scaled to its own range. Largest ' +
      'activation is its height before that.',
    '',
  ],
  ['error', '1 − correlation of the heatmap with the exact one, estimated; 0 where it is exact.', ''],
];

function glossary() {
  const rows = TERMS.map(([name, definition, chance]) =>
    el('div', { 'data-term': name },
      el('dt', name),
      el('dd', definition, chance && el('small', ` By chance: ${chance}.`)),
    ),
  );
  return el('details.glossary', el('summary', 'What the numbers mean'), el('dl', rows));
}
