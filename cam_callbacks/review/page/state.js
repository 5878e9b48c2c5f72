// The state of the view: which runs, which look, in what order.

import { COLORS, PHOTOS } from './picture.js';
import { NUMBERS } from './probes.js';

/** All that an address may say; it says only what differs from this. */
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
  photo: 'gray', // under heat
};

/** The state that an address asks for; what it does not say, or says wrong, is as in `DEFAULTS`. */
export function stateOf(address) {
  const known = Object.entries(address.read()).filter(([key]) => Object.hasOwn(DEFAULTS, key));
  const state = { ...DEFAULTS, ...Object.fromEntries(known) };
  if (!Object.hasOwn(COLORS, state.colors)) state.colors = DEFAULTS.colors;
  if (!PHOTOS.includes(state.photo)) state.photo = DEFAULTS.photo;
  if (!/^(\d\d?|100)$/.test(state.heat)) state.heat = DEFAULTS.heat;
  if (!NUMBERS.some(([key]) => key === state.sort)) state.sort = DEFAULTS.sort;
  return state;
}

/** Write a state into the address. */
export function remember(state, address) {
  address.write(Object.fromEntries(Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key])));
}
