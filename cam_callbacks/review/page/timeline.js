// The timeline: curves over a slider.

import { curveOf, curvesOf } from './curves.js';
import { el } from './elements.js';
import { term } from './glossary.js';
import { digits, interval, moment } from './words.js';

export class Timeline {
  slider;
  curves = el('section.timeline', { 'aria-label': 'Curves of the audit' });
  #range = el('input', { type: 'range', min: 0, step: 1, 'aria-label': 'Look' });
  #where = el('output.where');
  #play = el('button.play', { type: 'button' });
  #readouts = [];
  #goTo;
  #runs = [];
  #steps = [];
  #at = 0;

  /** @param goTo called with the place of a look among `steps` */
  constructor(goTo, onPlay) {
    this.#goTo = goTo;
    this.#range.addEventListener('input', () => goTo(Number(this.#range.value)));
    this.#play.addEventListener('click', onPlay);
    this.slider = el('div.slider',
      el('span.buttons',
        this.#play,
        el('button', { type: 'button', 'aria-label': 'Look before', onclick: () => goTo(this.#at - 1) }, '‹'),
        el('button', { type: 'button', 'aria-label': 'Next look', onclick: () => goTo(this.#at + 1) }, '›'),
      ),
      this.#range,
      this.#where,
    );
  }

  /** Draw the curves of some runs over the steps of all of them. */
  draw(runs, steps) {
    this.#runs = runs;
    this.#steps = steps;
    this.#range.max = Math.max(0, steps.length - 1);
    this.#readouts = [];
    const curves = curvesOf(runs);
    this.curves.hidden = curves.length === 0;
    this.curves.replaceChildren(...curves.map((curve) => this.#row(curve)));
  }

  #row(curve) {
    const plot = curveOf(curve, this.#runs, this.#steps);
    plot.append(el('span.now'));
    const goTo = (event) => {
      if (event.buttons !== 1) return;
      const { left, width } = plot.getBoundingClientRect();
      this.#goTo(Math.round(((event.clientX - left) / width) * (this.#steps.length - 1)));
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
    this.#at = at;
    this.#range.value = at;
    this.#play.textContent = playing ? 'Pause' : 'Play';
    const place = at / Math.max(1, this.#steps.length - 1);
    for (const line of this.curves.querySelectorAll('.now')) line.style.left = `${100 * place}%`;
    const look = this.#runs[0].at(this.#steps[at]);
    this.#where.replaceChildren(el('strong', moment(look)), el('small', `look ${at + 1} of ${this.#steps.length}`));
    this.#range.setAttribute('aria-valuetext', moment(look));
    for (const [readout, curve] of this.#readouts) {
      readout.replaceChildren(...this.#runs.map((run) => this.#reading(curve, run)));
    }
  }

  #reading(curve, run) {
    const { audit } = run.at(this.#steps[this.#at]);
    const estimate = curve.estimate(audit, curve.measure(audit));
    const value = estimate?.value != null;
    return el('p',
      el('span', { class: `key run-${run.side}` }, el('strong', value ? digits(estimate.value) : '–')),
      el('small', value ? interval(estimate) : curve.missing),
      value && estimate.label != null && el('small.of', { title: estimate.label }, estimate.label),
      value && estimate.chance != null && estimate.chance !== 0 && el('small', `chance ${digits(estimate.chance)}`),
    );
  }
}
