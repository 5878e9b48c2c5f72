// Where the data comes from: a server, or the page itself.

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
  skipped;
  #data;

  constructor(data) {
    this.#data = data;
    this.skipped = data.skipped ?? [];
  }

  async runs() {
    const monitors = Map.groupBy(this.#data.runs, ({ timeline }) => timeline.run);
    return [...monitors].map(([run, of]) => ({ run, monitors: of.map(({ timeline }) => timeline.monitor) }));
  }

  timeline = async (run, monitor) => this.#find(run, monitor).timeline;
  look = async (run, monitor, step) => this.#find(run, monitor).looks[step];
  swaps = async (run, monitor, step) => this.#find(run, monitor).swaps?.[step] ?? null;
  terms = async () => this.#data.terms;

  #find(run, monitor) {
    return this.#data.runs.find(({ timeline }) => timeline.run === run && timeline.monitor === monitor);
  }
}
