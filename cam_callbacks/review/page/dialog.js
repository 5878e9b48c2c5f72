// One probe over all looks.

import { swaps } from './audit.js';
import { decoded, el } from './elements.js';
import { paint, ProbePicture, Scale } from './picture.js';
import { className, digits, isMistake, mainNumber, moment, short, truth } from './words.js';

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
export class ProbeDialog {
  node;
  #title = el('h2', { id: 'probe-title' });
  #content = el('div.content');
  #scale = new Scale();
  #shown = '';
  #sections = [];
  #goTo;

  constructor(onClose, goTo) {
    this.#goTo = goTo;
    this.node = el('dialog.probe', { 'aria-labelledby': 'probe-title', onclose: onClose },
      el('header', this.#title, this.#scale.node, el('button', { type: 'button', onclick: () => this.node.close() }, 'Close (Esc)')),
      this.#content,
    );
    this.node.addEventListener('click', (event) => event.target === this.node && this.node.close());
  }

  /** Show probe `index` of some runs, each with the look that is current: [{run, look}]. */
  show(sides, index, colors) {
    const probe = sides[0].look.probes[index];
    if (!probe) return this.hide();
    this.#title.textContent = `Probe ${index + 1}: ${truth(sides[0].look, probe)}`;
    this.#scale.show(colors);
    const what = [index, colors, ...sides.map(({ run }) => `${run.name}/${run.looks.length}`)].join('\n');
    if (what !== this.#shown) {
      this.#shown = what;
      this.#sections = sides.map((side) => this.#section(side, index, colors));
      this.#content.replaceChildren(...this.#sections.map(({ node }) => node));
    }
    if (!this.node.open) this.node.showModal();
    this.#sections.forEach((section, at) => this.#mark(section, sides[at], index, colors));
  }

  hide() {
    if (this.node.open) this.node.close();
  }

  #section({ run }, index, colors) {
    const strip = el('div.strip');
    const tiles = run.looks.map(({ step, epoch }) => this.#tile(run, step, epoch, index, colors, strip));
    strip.append(...tiles);
    const now = el('div.now');
    const node = el('section', el('h3', { class: `key run-${run.side}` }, run.title), strip, now);
    return { node, strip, tiles, now };
  }

  #tile(run, step, epoch, index, colors, strip) {
    const words = el('span.number', '…');
    const when = epoch == null ? `step ${step}` : `epoch ${epoch}`;
    const empty = el('span.picture');
    const tile = el('button.tile', { type: 'button', onclick: () => this.#goTo(step) }, empty, words, el('small', when));
    whenSeen(tile, async () => {
      const look = await run.look(step).catch(() => null);
      const probe = look?.probes[index];
      if (!probe) return void (words.textContent = 'not there');
      const picture = new ProbePicture(look.photos[index], 120);
      picture.show(look, index, colors);
      empty.replaceWith(picture.node);
      const [, number, shown] = mainNumber(look, probe);
      words.textContent = shown(number);
      tile.classList.toggle('mistake', isMistake(probe));
    }, strip);
    return tile;
  }

  /** Mark the current look in the strip, and show its channels. */
  #mark({ strip, tiles, now }, { run, look }, index, colors) {
    const at = run.steps.indexOf(look.step);
    tiles.forEach((tile, place) => tile.setAttribute('aria-current', place === at));
    if (now.dataset.step === String(look.step) && now.dataset.colors === colors) return;
    now.dataset.step = look.step;
    now.dataset.colors = colors;
    const tile = tiles[at];
    strip.scrollLeft = tile.offsetLeft - strip.offsetLeft - (strip.clientWidth - tile.offsetWidth) / 2;
    const probe = look.probes[index];
    const swapped = run.at(look.step).audit ? swaps(run, run.at(look.step)) : 'No audit at this look.';
    now.replaceChildren(
      el('div', el('h4', 'This look'), facts(look, probe)),
      el('div', el('h4', 'Channels of largest weight'), channels(look, index, colors)),
      el('div.whole', el('h4', 'Swapped backgrounds: other images, those of the audit that lose most'), swapped),
    );
  }
}

function facts(look, probe) {
  const { label, predicted, rival, heat_on_object: heat, heat_on_object_chance: chance } = probe;
  const rows = [
    ['look', moment(look)],
    ['true class', label != null && `${className(look, label)} ${digits(probe.probability_label)}`],
    ['true', label == null && probe.truth],
    [look.score || 'score', label == null && predicted == null && short(probe.score)],
    ['predicted', predicted != null && `${className(look, predicted)} ${digits(probe.probability_predicted)}`],
    ['rival class', rival && `${className(look, rival.label)} ${digits(rival.probability)}`],
    ['heat on object', heat != null && `${digits(heat)}${chance == null ? '' : ` (by chance ${digits(chance)})`}`],
    ['largest activation', short(probe.largest)],
    ['error of the map', short(probe.error)],
    ['forward passes', short(probe.passes)],
  ];
  return el('dl.facts', rows.filter(([, value]) => value).map(([name, value]) => [el('dt', name), el('dd', value)]));
}

/** The channels of a probe that weigh most: each as a map, with its index and weight. */
function channels(look, index, colors) {
  const pictures = look.channels?.[index] ?? [];
  if (pictures.length === 0) return el('p', 'None: the maps are not sums of channels, or those of this look were not kept.');
  const figures = pictures.map((source, place) => {
    const [channel, weight] = look.probes[index].channels?.[place] ?? ['?', null];
    const canvas = el('canvas', { width: 112, height: 112 });
    decoded(source).then((map) => map && paint(canvas, map, colors));
    return el('figure', canvas, el('figcaption', `${channel}`, el('small', `weight ${short(weight)}`)));
  });
  return el('div.channels', figures);
}
