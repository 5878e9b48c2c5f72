// The view of what CAMMonitor wrote: in TensorBoard's CAM tab and in the report.
//
// One state (which run, which look, what order) -> View.update() -> everything is drawn from it again.

import { HashAddress } from './address.js';
import { verdict } from './audit.js';
import { Page } from './page.js';
import { printed } from './print.js';
import { chosen, Pane } from './probes.js';
import { Run, SIDES } from './run.js';
import { remember, stateOf } from './state.js';
import { className } from './words.js';

const ADDRESS_MS = 200; // browsers refuse to change the address at each move of a slider
const MAX_RUNS_COMPARED = 8; // whose verdicts are read before one is shown
const WORST_LAST = ['suspicion', 'warning', 'alarm'];
const PLAY_MS = 12_000; // for all looks
const [MIN_PAUSE_MS, MAX_PAUSE_MS] = [100, 800]; // between two looks

const NOTHING =
  'Nothing here yet: no run in this log folder was written with CAMMonitor, or its first look is still to come. ' +
  'Add it to the callbacks of a Trainer that logs to this folder: Trainer(callbacks=[CAMMonitor()]).';

const keyOf = ({ name, monitor }) => `${monitor}/${name}`;

class View {
  state;
  #source;
  #address;
  #page;
  #runs = [];
  #steps = [];
  #panes = [];
  #drawing = null;
  #again = false;
  #playing = false;
  #remembering = 0;

  constructor(root, source, { address = new HashAddress() } = {}) {
    this.#source = source;
    this.#address = address;
    this.#page = new Page(root, source, {
      update: (changes) => this.update(changes),
      open: (changes) => this.#open({ ...this.state, ...changes }),
      flip: (key) => this.update({ [key]: this.state[key] ? '' : '1' }),
      goToPlace: (place) => this.#goToPlace(place),
      play: () => this.#play(),
      closeProbe: () => this.state.probe && this.update({ probe: '', side: '' }),
      link: () => this.#link(),
    });
    this.state = stateOf(address);
    address.onChange(() => this.#open(stateOf(address)));
    document.addEventListener('keydown', (event) => this.#key(event));
  }

  setTheme(theme) {
    this.#page.setTheme(theme);
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
      const [found] = await Promise.all([this.#source.runs(), this.#page.glossary.read(this.#source)]);
      if (state !== this.state) return; // another one was opened meanwhile
      if (found.length === 0) return void this.#showNothing(NOTHING);
      const worst = state.run || (await this.#worst(found));
      if (state !== this.state) return;
      state.run = worst;
      const runs = this.#choose(found);
      const changed = await Promise.all(runs.map((run) => run.read()));
      if (state !== this.state) return;
      const empty = runs.find((run) => run.looks.length === 0);
      if (empty) return void this.#showNothing(`${empty.name}: no complete look yet.`);
      this.#page.showSomething();
      this.#page.say(this.#missing(found, runs[0]));
      const others = String(runs.map(keyOf)) !== String(this.#runs.map(keyOf));
      if (others || changed.includes(true)) this.#take(runs, others);
      else if (again) return;
      this.#rememberSoon();
      await this.update({});
    } catch (error) {
      if (state !== this.state) return;
      if (again && this.#runs.length > 0) this.#page.say(error.message); // what is shown stays until the next poll
      else this.#showNothing(error.message);
    }
  }

  /** Of a few runs the one whose last verdict is worst, else the first. */
  async #worst(found) {
    if (found.length === 1 || found.length > MAX_RUNS_COMPARED) return found[0].run;
    const asked = found.map(({ run, monitors }) => this.#source.timeline(run, monitors[0]));
    const ranks = (await Promise.allSettled(asked)).map(({ value }) => {
      const last = value?.looks.findLast((look) => look.audit);
      return WORST_LAST.indexOf(last?.audit.verdict.state);
    });
    return found[ranks.indexOf(Math.max(...ranks))].run;
  }

  #showNothing(why) {
    this.#runs = [];
    this.#page.showNothing(why);
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
    const names = found.map(({ run }) => run);
    this.#page.listRuns(names, first.run, second?.run ?? '', first.monitors, monitor);
    return [first, second].filter(Boolean).map((each) => {
      const run = new Run(this.#source, each.run, monitorOf(each, monitor));
      return this.#runs.find((known) => keyOf(known) === keyOf(run)) ?? run;
    });
  }

  /** Draw what depends on the runs, not on the look. Who was at the last look follows to a new one. */
  #take(runs, others) {
    const { state } = this;
    const atEnd = state.step !== '' && Number(state.step) === this.#steps.at(-1);
    if (others) {
      const differ = new Set(runs.map(({ monitor }) => monitor)).size > 1;
      for (const [index, run] of runs.entries()) {
        run.side = SIDES[index];
        run.title = differ ? `${run.name}, ${run.monitor}` : run.name;
      }
      const open = ({ side }) => (probe) => this.update({ probe: String(probe), side: side === SIDES[0] ? '' : side });
      this.#panes = runs.map((run) => new Pane(run, open(run)));
      this.#page.showPanes(this.#panes.map(({ node }) => node));
    }
    this.#runs = runs;
    this.#steps = [...new Set(runs.flatMap((run) => run.steps))].sort((one, other) => one - other);
    if (atEnd && !others) state.step = String(this.#steps.at(-1));
    this.#page.timeline.draw(runs, this.#steps);
    this.#page.showToolbar(runs.some((run) => run.looks.some((look) => look.heatmaps)));
  }

  /** Ask again for new looks, while the page is seen. */
  poll(pause) {
    setInterval(() => this.#page.isSeen && this.#open(this.state), pause);
  }

  // -- drawing

  /** Change the state and draw it; resolves when the pictures are there. */
  update(changes) {
    Object.assign(this.state, changes);
    if (Object.keys(changes).length > 0) this.#rememberSoon();
    if (this.#runs.length === 0 || this.#steps.length === 0) return Promise.resolve();
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
    remember({ ...this.state, run: name, monitor, step: String(this.#steps[this.#place]) }, this.#address);
  }

  /** The place of the current look among the steps. */
  get #place() {
    if (this.state.step === '') return this.#steps.length - 1;
    const wanted = Number(this.state.step) || 0;
    const distances = this.#steps.map((step) => Math.abs(step - wanted));
    return distances.indexOf(Math.min(...distances));
  }

  /** What is known without asking for a look: numbers, words, controls. */
  #drawFrame() {
    this.#page.timeline.mark(this.#place, this.#playing);
    const step = this.#steps[this.#place];
    this.#page.showVerdicts(this.#runs.map((run) => verdict(run, run.at(step))));
    this.#page.showState(this.state);
  }

  /** The looks, one request at a time: what is asked for meanwhile is drawn next. */
  async #drawLooks() {
    do {
      this.#again = false;
      const [runs, step] = [this.#runs, this.#steps[this.#place]];
      try {
        const looks = await Promise.all(runs.map((run) => run.look(run.at(step).step)));
        if (runs === this.#runs) this.#showLooks(looks);
      } catch (error) {
        this.#page.say(error.message);
      }
    } while (this.#again);
    this.#prefetch();
  }

  #showLooks(looks) {
    const { state } = this;
    if (!looks[0].no_heatmaps) {
      this.#listClasses(looks[0]);
      this.#page.listNumbers(looks[0], state.sort);
    }
    const shared = looks.length > 1 && !looks[0].no_heatmaps && this.#runs[0].sharesProbesWith(this.#runs[1]);
    const order = chosen(looks[0], state);
    for (const [index, pane] of this.#panes.entries()) {
      const look = looks[index];
      pane.show(look, index === 0 || shared ? order : chosen(look, state), state);
    }
    const { dialog } = this.#page;
    if (state.probe === '') return dialog.hide();
    const all = looks.map((look, index) => ({ run: this.#runs[index], look }));
    const own = all.find(({ run }) => run.side === state.side) ?? all[0];
    dialog.show(shared ? all : [own], Number(state.probe), state.colors);
  }

  /** List the classes of the probes; a class that none has any more is no longer asked for. */
  #listClasses(look) {
    const { state } = this;
    const labels = [...new Set(look.probes.map(({ label }) => label))].sort((one, other) => one - other);
    const known = labels.some((label) => label != null) ? labels : [];
    const classes = known.map((label) => [String(label), className(look, label)]);
    if (state.class && !classes.some(([label]) => label === state.class)) {
      state.class = '';
      this.#rememberSoon();
    }
    this.#page.listClasses(classes, state.class);
  }

  #prefetch() {
    const near = [this.#place + 1, this.#place - 1].filter((place) => place in this.#steps);
    for (const place of near) {
      for (const run of this.#runs) run.look(run.at(this.#steps[place]).step).catch(() => {});
    }
  }

  // -- acting

  #goToPlace(place) {
    const step = this.#steps[Math.max(0, Math.min(place, this.#steps.length - 1))];
    return this.update({ step: String(step) });
  }

  async #play() {
    this.#playing = !this.#playing;
    if (this.#playing && this.#place === this.#steps.length - 1) this.#goToPlace(0);
    const pause = Math.max(MIN_PAUSE_MS, Math.min(MAX_PAUSE_MS, PLAY_MS / this.#steps.length));
    while (this.#playing && this.#place < this.#steps.length - 1) {
      await new Promise((done) => setTimeout(done, pause));
      if (this.#playing) await this.#goToPlace(this.#place + 1);
    }
    this.#playing = false;
    this.update({});
  }

  #key(event) {
    const typing = event.target.closest?.('input, select, textarea');
    if (event.ctrlKey || event.metaKey || event.altKey || typing || this.#steps.length === 0) return;
    const places = { ArrowLeft: this.#place - 1, ArrowRight: this.#place + 1, Home: 0, End: this.#steps.length - 1 };
    if (event.key in places) this.#goToPlace(places[event.key]);
    else if (event.key === ' ' && !event.target.closest('button, summary')) this.#play();
    else return;
    event.preventDefault();
  }

  #link() {
    this.#remember();
    return this.#address.url;
  }
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
