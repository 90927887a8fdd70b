// One key per button, for people who rate many answers. Never while typing, with a modifier, or on a hidden button.
const keys = {
  Escape: '#stop',
  g: '#transcript .turn:last-child .thumb.up',
  b: '#transcript .turn:last-child .thumb.down',
  r: '#transcript .turn:last-child [data-act=explain]',
  u: '#transcript .turn:last-child [data-act=undo]',
  1: '#choose-left',
  2: '#choose-right',
  t: '#choose-tie',
  x: '#choose-both-bad',
  s: '#choose-skip',
  n: '#compare-next',
};

document.addEventListener('keydown', (event) => {
  const typing = event.target.closest('input, textarea, select, [contenteditable]');
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || (typing && event.key !== 'Escape')) return;
  const button = keys[event.key] && document.querySelector(keys[event.key]);
  if (button && button.offsetParent !== null && !button.disabled) button.click();
});
