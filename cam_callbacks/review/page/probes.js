// The probes of a run at a look, as cards, and below them its tables.

import { appendix } from './audit.js';
import { el } from './elements.js';
import { ProbePicture } from './picture.js';
import { className, digits, isMistake, moment, plural, short } from './words.js';

/** What stands open at first where there are no heatmaps. */
const OPEN_ALONE = ['The whole verdict', 'Swapped backgrounds'];

/** What probes can be sorted by: a key of the state, the words for it, the number. */
export const NUMBERS = [
  ['', 'order of the data', (probe, index) => index],
  ['true', 'probability of the true class', (probe) => probe.probability_label],
  ['predicted', 'probability of the predicted class', (probe) => probe.probability_predicted],
  ['heat', 'heat on object', (probe) => probe.heat_on_object],
  ['over', 'heat on object − chance', (probe) => difference(probe.heat_on_object, probe.heat_on_object_chance)],
  ['largest', 'largest activation', (probe) => probe.largest],
  ['score', 'score that is explained', (probe) => probe.score],
  ['error', 'estimated error of the map', (probe) => probe.error],
  ['passes', 'forward passes', (probe) => probe.passes],
];

/** Those that some probe of a look has, and the one that is chosen. */
export function numbersOf(look, sort) {
  const isKnown = ([key, , number]) => key === sort || look.probes.some((probe, index) => number(probe, index) != null);
  return NUMBERS.filter(isKnown);
}

const difference = (value, other) => (value == null || other == null ? null : value - other);

/** The indices of the probes that the state asks for, in its order; those without the number come last. */
export function chosen(look, state) {
  const [, , number] = NUMBERS.find(([key]) => key === state.sort);
  const values = look.probes.map(number);
  const sign = state.sort && state.down ? -1 : 1;
  const missing = (index) => Number(values[index] == null);
  return [...look.probes.keys()]
    .filter((index) => !state.class || String(look.probes[index].label) === state.class)
    .filter((index) => !state.wrong || isMistake(look.probes[index]))
    .sort((one, other) => missing(one) - missing(other) || sign * (values[one] - values[other]) || one - other);
}

const cardOf = new WeakMap();

const CARDS_IN_VIEW = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      cardOf.get(target).setInView(isIntersecting);
    }
  },
  { rootMargin: '200px' },
);

/** A probe at a look: photo and heat (painted while in view), labels with probabilities, heat on the object beside chance. */
class Card {
  node;
  #labels = el('span.labels');
  #extra = el('span.extra');
  #index;
  #picture;
  #isInView = false;
  #paint = () => {};

  constructor(index, photo, open) {
    this.#index = index;
    this.#picture = new ProbePicture(photo);
    this.node = el('button.card', { type: 'button', 'data-probe': index, onclick: open },
      this.#picture.node,
      this.#labels,
      this.#extra,
    );
    cardOf.set(this.node, this);
    CARDS_IN_VIEW.observe(this.node);
  }

  setInView(isInView) {
    this.#isInView = isInView;
    if (isInView) this.#paint();
  }

  show(look, colors) {
    const probe = look.probes[this.#index];
    this.#paint = () => this.#picture.show(look, this.#index, colors);
    if (this.#isInView) this.#paint();
    const { label, predicted } = probe;
    const wrong = isMistake(probe);
    const several = label == null && probe.truth != null;
    const said = wrong ? '✗ said' : several ? 'likeliest' : 'said';
    this.node.classList.toggle('mistake', wrong);
    this.#labels.replaceChildren(
      ...(label == null ? [] : named('true', className(look, label), probe.probability_label)),
      ...(several ? truthOf(probe) : []),
      ...(predicted == null ? [] : named(said, className(look, predicted), probe.probability_predicted)),
      ...(label == null && predicted == null ? named(look.score || 'score', '', probe.score, short) : []),
    );
    const explained = probe.explained != null && probe.explained !== label;
    this.#extra.replaceChildren(
      probe.heat_on_object == null ? '' : heatBar(probe),
      explained ? el('span.why', `heat of: ${className(look, probe.explained)}`) : '',
    );
  }
}

/** What is true of a probe that has not one class: in the place of a number where a number is answered. */
const truthOf = ({ truth, predicted, explained }) =>
  predicted == null && explained == null
    ? named('true', '', truth, String)
    : [el('span.what', 'true'), el('span.name.wide', { title: truth }, truth)];

const named = (what, name, number, shown = digits) => [
  el('span.what', what),
  el('span.name', { title: name }, name),
  el('span.number', shown(number)),
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
export class Pane {
  node;
  #cards = [];
  #facts = el('span.facts');
  #grid = el('div.cards');
  #none = el('p.none');
  #appendix = el('div.appendix');
  #run;
  #open;
  #photos = null;
  #shownAppendix = '';

  /** @param open called with the index of a probe */
  constructor(run, open) {
    this.#run = run;
    this.#open = open;
    this.node = el(
      'section',
      { class: 'pane', 'aria-label': `Probes of ${run.name}` },
      el('header', el('h2', { class: `key run-${run.side}` }, run.title), this.#facts),
      this.#grid,
      this.#none,
      this.#appendix,
    );
  }

  show(look, order, state) {
    this.#makeCards(look);
    const all = look.probes.length;
    const part = order.length < all ? `${order.length} of ` : '';
    const count = look.no_heatmaps ? '' : `${part}${plural(all, 'probe')}`;
    this.#facts.textContent = [moment(look), count, look.layer, look.coarse, look.method].filter(Boolean).join(' · ');
    const cards = order.map((index) => this.#cards[index]).filter(Boolean);
    for (const card of cards) card.show(look, state.colors);
    const nodes = cards.map(({ node }) => node);
    if (nodes.some((node, at) => node !== this.#grid.children[at]) || nodes.length !== this.#grid.children.length) {
      const focused = document.activeElement;
      this.#grid.replaceChildren(...nodes);
      if (nodes.includes(focused)) focused.focus({ preventScroll: true });
    }
    const noPhotos = look.photos.length > 0 ? '' : 'The photos of the probes were not kept: heatmaps only.';
    this.#none.textContent = look.no_heatmaps ?? (nodes.length > 0 ? noPhotos : 'No probe matches at this look.');
    this.#showAppendix(look);
  }

  #makeCards({ probes, photos }) {
    if (this.#cards.length === probes.length && this.#photos === photos) return;
    this.#photos = photos;
    for (const { node } of this.#cards) CARDS_IN_VIEW.unobserve(node);
    this.#cards = probes.map((_, index) => new Card(index, photos[index], () => this.#open(index)));
  }

  /** Tables and the picture of swaps, each staying open or closed as it was, and made when it is open. */
  #showAppendix({ step, no_heatmaps: isAlone }) {
    const shown = `${step}/${this.#run.looks.length}`;
    if (this.#shownAppendix === shown) return;
    const before = [...this.#appendix.querySelectorAll('details[open]')].map((each) => each.dataset.title);
    const open = this.#shownAppendix === '' && isAlone ? OPEN_ALONE : before;
    this.#shownAppendix = shown;
    const sections = appendix(this.#run, this.#run.at(step)).map(([title, make]) => {
      const content = el('div.scroll');
      const fillIn = () => content.childElementCount === 0 && content.append(make());
      const attributes = { 'data-title': title, open: open.includes(title), ontoggle: fillIn };
      if (attributes.open) fillIn();
      return el('details', attributes, el('summary', title), content);
    });
    this.#appendix.replaceChildren(...sections);
  }
}
