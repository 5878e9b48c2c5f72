// A run as a monitor saw it.

import { decoded } from './elements.js';

const MAX_LOOKS = 24;

const allDecoded = (sources) => Promise.all(sources.map(decoded));

/** The sides of a comparison, as style.css and addresses name them. */
export const SIDES = ['a', 'b'];

/** One run as one monitor saw it. Keeps the looks that were shown last, with their maps decoded. */
export class Run {
  name;
  monitor;
  title;
  side = SIDES[0];
  timeline = null;
  photos = [];
  #source;
  #looks = new Map();

  constructor(source, name, monitor) {
    this.#source = source;
    this.name = name;
    this.monitor = monitor;
    this.title = name;
  }

  /** Read the timeline; true if it has changed. */
  async read() {
    const before = this.timeline;
    const found = await this.#source.timeline(this.name, this.monitor, before?.state);
    if (found.unchanged || found === before) return false;
    this.timeline = found;
    if (String(before?.photos) !== String(this.timeline.photos)) {
      this.photos = await allDecoded(this.timeline.photos);
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
    if (this.#looks.size > MAX_LOOKS) this.#looks.delete(this.#looks.keys().next().value);
    return known;
  }

  async #read(step) {
    try {
      const look = await this.#source.look(this.name, this.monitor, step);
      const photos = look.photos && (await allDecoded(look.photos)); // probes of before a change
      const [maps, rivals] = [await allDecoded(look.maps), await allDecoded(look.rivals ?? [])];
      return { ...look, photos: photos ?? this.photos, maps, rivals };
    } catch (error) {
      this.#looks.delete(step);
      throw error;
    }
  }

  swaps(step) {
    return this.#source.swaps(this.name, this.monitor, step);
  }

  /** Whether both runs watch the same photos. */
  sharesProbesWith(other) {
    return this.photos.length > 0 && String(this.timeline.photos) === String(other.timeline.photos);
  }
}
