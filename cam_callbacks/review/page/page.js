// What stands on the page, and where. What the user wants is told to the view.

import { ProbeDialog } from './dialog.js';
import { el, fill } from './elements.js';
import { Glossary } from './glossary.js';
import { COLORS, PHOTOS, Scale } from './picture.js';
import { numbersOf } from './probes.js';
import { skippedFiles } from './skipped.js';
import { Timeline } from './timeline.js';

const COPIED_MS = 1500;

const same = (names) => names.map((name) => [name, name]);
const labeled = (text, node) => el('label', el('span', text), node);

export class Page {
  glossary = new Glossary();
  timeline;
  dialog;
  #verdicts = el('div.columns.verdicts');
  #panes = el('div.columns.panes');
  #toolbar;
  #message = el('p.message', { role: 'status' });
  #screen;
  #main;
  #run;
  #vs;
  #vsLabel;
  #monitor;
  #monitorLabel;
  #class;
  #classLabel;
  #wrongLabel;
  #sort;
  #down;
  #wrong;
  #colors;
  #heat;
  #photo;
  #scale = new Scale();
  #root;
  #theme = '';

  /**
   * @param root the element; what is in it is replaced
   * @param source where the data comes from
   * @param view what the user acts on: `update` and `open` take changes of the state, `flip` a key of it, `goToPlace` the
   *   place of a look; `play`; `closeProbe`; `link` gives the address of what is seen
   */
  constructor(root, source, view) {
    const value = (key) => ({ target }) => ({ [key]: target.value });
    const updates = (key) => (event) => view.update(value(key)(event));
    const opens = (key) => (event) => view.open({ ...value(key)(event), probe: '' });
    const select = (key, onchange) => el('select', { name: key, onchange });

    this.timeline = new Timeline(view.goToPlace, view.play);
    this.dialog = new ProbeDialog(view.closeProbe, (step) => view.update({ step: String(step) }));
    this.#run = select('run', opens('run'));
    this.#vs = select('vs', opens('vs'));
    this.#vsLabel = labeled('beside', this.#vs);
    this.#monitor = select('monitor', opens('monitor'));
    this.#monitorLabel = labeled('Monitor', this.#monitor);
    this.#class = select('class', updates('class'));
    this.#sort = select('sort', updates('sort'));
    this.#colors = select('colors', updates('colors'));
    this.#photo = select('photo', updates('photo'));
    this.#wrong = el('input', { type: 'checkbox', name: 'wrong', onchange: () => view.flip('wrong') });
    this.#down = el('button.direction', { type: 'button', onclick: () => view.flip('down') });
    this.#heat = el('input', { type: 'range', name: 'heat', min: 0, max: 100, step: 5, oninput: updates('heat') });
    fill(this.#colors, same(Object.keys(COLORS)), '');
    fill(this.#photo, same(PHOTOS), '');

    this.#toolbar = this.#makeToolbar();
    this.#main = this.#makeMain();
    this.#screen = el('div.screen', this.#makeTop(source, view), this.#message, this.#main, skippedFiles(source));
    this.#root = root;
    root.classList.add('cam');
    root.replaceChildren(this.#screen, this.dialog.node);
  }

  #makeTop(source, view) {
    const copy = ({ target }) => this.#copyLink(target, view.link());
    return el('header.top',
      source.complete && el('h1', 'CAM report'),
      labeled('Run', this.#run),
      this.#vsLabel,
      this.#monitorLabel,
      el('span.space'),
      el('button', { type: 'button', onclick: copy }, 'Copy link'),
      el('button', { type: 'button', onclick: () => this.#toggleTheme() }, 'Light / dark'),
    );
  }

  #makeToolbar() {
    this.#classLabel = labeled('Class', this.#class);
    this.#wrongLabel = el('label', this.#wrong, el('span', 'Mistakes only'));
    return el('div.toolbar',
      this.#classLabel,
      this.#wrongLabel,
      el('span.group', labeled('Sort by', this.#sort), this.#down),
      el('span.space'),
      el('span.layers',
        labeled('Heat', this.#heat),
        labeled('Colors', this.#colors),
        this.#scale.node,
        labeled('Photo', this.#photo),
      ),
    );
  }

  #makeMain() {
    return el('main',
      this.#verdicts,
      this.timeline.curves,
      el('div.controls',
        this.timeline.slider,
        this.#toolbar,
      ),
      this.#panes,
      this.glossary.node,
    );
  }

  /** Whether the page is in sight, and not in a tab of TensorBoard's that is folded away. */
  get isSeen() {
    return !document.hidden && this.#screen.clientWidth > 0;
  }

  say(text) {
    if (this.#message.textContent !== text) this.#message.textContent = text;
  }

  showNothing(why) {
    this.#main.hidden = true;
    this.dialog.hide();
    this.say(why);
  }

  showSomething() {
    this.#main.hidden = false;
  }

  /** List what can be chosen: all runs, the monitors of the first that is chosen. */
  listRuns(names, first, second, monitors, monitor) {
    const others = names.filter((name) => name !== first);
    fill(this.#run, same(names), first);
    fill(this.#vs, [['', 'no other run'], ...same(others)], second);
    fill(this.#monitor, same(monitors), monitor);
    this.#vsLabel.hidden = others.length === 0;
    this.#monitorLabel.hidden = monitors.length < 2;
  }

  /** List classes, [value, name]; none where probes have no class, so that none is right or wrong. */
  listClasses(classes, chosen) {
    for (const label of [this.#classLabel, this.#wrongLabel]) label.hidden = classes.length === 0;
    fill(this.#class, [['', 'all classes'], ...classes], chosen);
    this.#class.disabled = classes.length < 2;
  }

  /** List what the probes of a look can be sorted by. */
  listNumbers(look, chosen) {
    fill(this.#sort, numbersOf(look, chosen).map(([key, words]) => [key, words]), chosen);
  }

  showVerdicts(nodes) {
    this.#verdicts.replaceChildren(...nodes);
  }

  /** Show or hide what is chosen of heatmaps. */
  showToolbar(isShown) {
    this.#toolbar.hidden = !isShown;
  }

  showPanes(nodes) {
    this.#panes.replaceChildren(...nodes);
    this.#screen.classList.toggle('compared', nodes.length > 1);
  }

  /** Set the controls to a state. */
  showState({ sort, colors, heat, photo, wrong, down }) {
    this.#sort.value = sort;
    this.#colors.value = colors;
    this.#heat.value = heat;
    this.#photo.value = photo;
    this.#scale.show(colors);
    this.#wrong.checked = wrong !== '';
    this.#down.hidden = sort === '';
    this.#down.textContent = down ? '↓ largest first' : '↑ smallest first';
    this.#root.classList.toggle('color-photos', photo === 'color');
    for (const node of [this.#screen, this.dialog.node]) {
      node.style.setProperty('--heat', Number(heat) / 100);
      node.classList.toggle('no-heat', Number(heat) === 0);
    }
  }

  async #copyLink(button, link) {
    try {
      await navigator.clipboard.writeText(link);
      button.textContent = 'Copied';
      setTimeout(() => (button.textContent = 'Copy link'), COPIED_MS);
    } catch {
      window.prompt('Copy this link:', link); // where the browser keeps the clipboard to itself
    }
  }

  #toggleTheme() {
    const isDark = this.#theme ? this.#theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    this.setTheme(isDark ? 'light' : 'dark');
  }

  /** Be 'light' or 'dark'. */
  setTheme(theme) {
    this.#theme = theme;
    document.documentElement.style.colorScheme = theme;
  }
}
