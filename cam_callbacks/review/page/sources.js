// Where the data comes from: a server, or the page itself.

import { decoded, el } from './elements.js';
import { plural } from './words.js';

const LOOKS_KEPT = 24;

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
  /** The entries of the glossary. */
  terms = async () => (await this.#get('glossary')).terms;

  async #get(route, query = {}) {
    const answer = await fetch(`${route}?${new URLSearchParams(query)}`);
    const content = await answer.json().catch(() => ({}));
    if (answer.ok) return content;
    const why = content.error ?? `${route}: the server answered ${answer.status}`;
    throw new Error(query.run?.includes('"') ? `${why}. ${QUOTED}` : why);
  }
}

/** Reads from `{runs: [{timeline, looks: {step: look}, swaps: {step: picture}}], skipped: [{file, why}], terms}`. */
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
  terms = async () => this.data.terms;

  #find(run, monitor) {
    return this.data.runs.find(({ timeline }) => timeline.run === run && timeline.monitor === monitor);
  }
}

/** One run as one monitor saw it. Keeps the looks that were shown last, with their maps decoded. */
export class Run {
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

/** Event files that were read in part, and those that were left out; empty where there are none. */
export function skippedFiles({ skipped = [] }) {
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
