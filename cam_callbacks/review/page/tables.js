// The tables of an audit, and of the settings.

import { el } from './elements.js';
import { isByClass, term } from './glossary.js';
import { digits, interval } from './words.js';

/** A table of rows, the first cell of each its name; a row of words alone is a heading. */
function table(heads, rows, kind) {
  const row = ([name, ...cells]) =>
    el('tr', el('th', { scope: 'row' }, name), cells.map((cell) => el('td', cell)));
  const part = (words) => el('tr.part', el('th', { scope: 'rowgroup', colspan: heads.length }, words));
  const head = heads.length > 0 && el('thead', el('tr', heads.map((text) => el('th', text))));
  return el('table', { class: kind }, head, el('tbody', rows.map((each) => (typeof each === 'string' ? part(each) : row(each)))));
}

/** A value with its interval, marked where all of it is above a threshold. */
function shown(estimate, threshold = Infinity) {
  if (estimate?.value == null) return '–';
  const high = estimate.low > threshold;
  return el('span', { class: high && 'high' }, digits(estimate.value), ' ', el('small', interval(estimate)));
}

/** The main measures, one row a class. */
export function classTable({ measures, gap, threshold, words }) {
  const names = Object.keys(measures).filter(isByClass);
  const classes = [...new Set(names.flatMap((name) => Object.keys(measures[name].per_class)))];
  const cell = (name, label) => {
    const { overall: all, per_class: of } = measures[name];
    return shown(label === undefined ? all : of[label], name === gap ? threshold : Infinity);
  };
  const row = (label) => [label ?? 'all', ...names.map((name) => cell(name, label))];
  const rows = classes.length > 1 ? [undefined, ...classes] : [undefined]; // one alone is all
  return table([words.one, ...names.map((name) => term(name))], rows.map(row));
}

/** All measures over all images. */
export function measureTable({ measures }) {
  const row = ([name, { overall: all }]) => [term(name), shown(all), digits(all.chance), all.count];
  const rows = Object.entries(measures).map(row);
  return table(['measure', 'value', 'chance', 'images'], rows);
}

/** What the monitor was made with. */
export function settingsTable({ version, versions, settings }) {
  const rows = Object.entries({ cam_callbacks: version, ...versions, ...settings });
  return table([], rows.map(([name, value]) => [name, value === null ? 'None' : String(value)]), 'settings');
}

/** The background and what else was exchanged, one beside the other; nothing where it is the background alone. */
export function dependenceTable({ dependences = [], measures }) {
  if (dependences.length < 2) return null;
  const gap = (name) => shown(name && measures[name]?.overall);
  const state = ({ state: found, about }) => [
    el('span', { class: `outcome ${found.replaceAll(' ', '-')}` }, found),
    about && el('small', ` ${found === 'not judged' ? '' : 'in '}${about}`),
  ];
  const rows = dependences.map((each) =>
    [term(each.gap, each.title), gap(each.gap), gap(each.placebo), digits(each.cost), el('span', state(each))]);
  return el('div.scroll', table(['exchanged', 'gap', 'placebo', term('cost'), 'dependence'], rows, 'dependences'));
}

const FEW = 3; // properties that give nothing away, and are shown all the same
const MANY = 10; // that give something away

/** What simple properties of the images tell: the most telling, and all of them at a click. */
export function dataTable({ data, words }) {
  const heads = [term('property'), 'where', words.one, words.area, 'by chance', 'p-value', 'images', ''];
  const row = (each) => [
    each.name,
    each.where,
    each.label,
    el('span', { class: each.gives_away && !each.shows_object && 'high' }, digits(each.auc)),
    digits(each.chance),
    digits(each.p_value, 3),
    each.count,
    each.gives_away && (each.shows_object ? 'tells it' : 'gives it away'),
  ];
  const parts = [false, true].map((shows) => data.filter((each) => each.shows_object === shows));
  const short = parts.map((all) => [
    ...all.filter((each) => each.gives_away).slice(0, MANY),
    ...all.filter((each) => !each.gives_away).slice(0, FEW),
  ]);
  const tableOf = ([apart, within]) =>
    table(heads, [...apart.map(row), ...(within.length > 0 ? [WITHIN, ...within.map(row)] : [])], 'data');
  const place = el('div', tableOf(short));
  const showAll = () => {
    place.replaceChildren(tableOf(parts));
    more.remove();
  };
  const count = short.flat().length;
  const more = count < data.length && el('div.more',
    el('button', { type: 'button', onclick: showAll }, `All ${data.length}`),
    el('small', `the ${count} most telling of ${data.length} are shown`),
  );
  return el('div',
    el('p.about', `About the data, not the model: how well a property of the images alone tells ${words.told_apart}.`),
    place,
    more,
  );
}

const WITHIN = 'The object is a part of these, so that they may be right';
