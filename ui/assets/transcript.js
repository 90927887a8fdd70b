// Clicks become events, and the log stays at its end unless the reader scrolled up. All state is in Python.
let atEnd = true;
const seen = new WeakSet();
const log = () => element.querySelector('.log');

element.addEventListener('scroll', (event) => {
  const box = event.target;
  if (box === log()) atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
}, true);

watch('value', () => {
  const box = log();
  if (box && atEnd) box.scrollTop = box.scrollHeight;
  for (const panel of element.querySelectorAll('.why fieldset')) {
    if (!seen.has(panel)) panel.scrollIntoView({ block: 'nearest' });
    seen.add(panel);
  }
});

element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-act]');
  if (!button) return;
  if (button.dataset.act === 'suggest') {
    trigger('suggest', { text: button.dataset.value });
    return;
  }
  const turn = button.closest('[data-interaction]');
  const chips = turn.querySelectorAll('.why input:checked');
  const comment = turn.querySelector('.why textarea');
  trigger('act', {
    act: button.dataset.act,
    value: button.dataset.value || '',
    interaction_id: turn.dataset.interaction,
    reasons: Array.from(chips, (chip) => chip.value),
    comment: comment ? comment.value : '',
  });
});
