// The view of what CAMMonitor wrote: in TensorBoard's CAM tab and in the report.
//
// One state (which run, which look, what order) -> View.update() -> everything is drawn from it again.

import { HashAddress } from './address.js';
import { verdict } from './audit.js';
import { ProbeDialog } from './dialog.js';
import { el, fill } from './elements.js';
import { Glossary } from './glossary.js';
import { COLORS } from './picture.js';
import { printed } from './print.js';
import { chosen, NUMBERS, Pane } from './probes.js';
import { Run, skippedFiles } from './sources.js';
import { Timeline } from './timeline.js';
import { className } from './words.js';

const ADDRESS_MS = 200; // browsers refuse to change the address at each move of a slider
const FEW_RUNS = 8; // whose verdicts are read before one is shown
const WORST_LAST = ['suspicion', 'warning', 'alarm'];
const same = (names) => names.map((name) => [name, name]);

/** The state, as it stands in the address: only what differs from this. */
const DEFAULTS = {
  run: '', // '': the one whose last verdict is worst
  monitor: '',
  vs: '', // the second run; '': none
  step: '', // '': the last
  probe: '', // whose history is open
  side: '', // 'b': the probe is of the second run
  sort: '',
  down: '', // '1': largest first
  class: '',
  wrong: '', // '1': mistakes only
  colors: 'inferno',
  heat: '50', // opacity in percent
};

class View {
  #source;
  #address;
  #glossary = new Glossary();
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
    if (!Object.hasOwn(COLORS, state.colors)) state.colors = DEFAULTS.colors;
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
      colors: select('colors'),
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
    fill(parts.colors, same(Object.keys(COLORS)), '');
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
          named('Colors', parts.colors),
        ),
      ),
      parts.panes,
      this.#glossary.node,
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
      const [found] = await Promise.all([this.#source.runs(), this.#glossary.read(this.#source)]);
      if (state !== this.state) return; // another one was opened meanwhile
      if (found.length === 0) return void this.#showNothing(NOTHING);
      const worst = state.run || (await this.#worst(found));
      if (state !== this.state) return;
      state.run = worst;
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

  /** Of a few runs the one whose last verdict is worst, else the first. */
  async #worst(found) {
    if (found.length === 1 || found.length > FEW_RUNS) return found[0].run;
    const asked = found.map(({ run, monitors }) => this.#source.timeline(run, monitors[0]));
    const ranks = (await Promise.allSettled(asked)).map(({ value }) => {
      const last = value?.looks.findLast((look) => look.audit);
      return WORST_LAST.indexOf(last?.audit.verdict.state);
    });
    return found[ranks.indexOf(Math.max(...ranks))].run;
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
    for (const key of ['sort', 'colors', 'heat']) parts[key].value = state[key];
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
    const labels = [...new Set(looks[0].probes.map(({ label }) => label))].sort((one, other) => one - other);
    const classes = labels.map((label) => [String(label), className(looks[0], label)]);
    if (state.class && !classes.some(([label]) => label === state.class)) {
      state.class = '';
      this.#rememberSoon();
    }
    fill(parts.class, [['', 'all classes'], ...classes], state.class);
    parts.class.disabled = labels.length < 2;
    const shared = looks.length > 1 && this.#runs[0].sharesProbesWith(this.#runs[1]);
    const order = chosen(looks[0], state);
    for (const [index, pane] of this.#panes.entries()) {
      const look = looks[index];
      pane.show(look, index === 0 || shared ? order : chosen(look, state), state);
    }
    if (state.probe === '') return this.dialog.hide();
    const sides = looks.map((look, index) => ({ run: this.#runs[index], name: 'ab'[index], look }));
    const own = sides[state.side && sides.length > 1 ? 1 : 0];
    this.dialog.show(shared ? sides : [own], Number(state.probe), state.colors);
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
