// Times are drawn with the UI process's clock; the reader's own zone is known only here.
const localise = () => {
  for (const time of element.querySelectorAll('time')) {
    const moment = new Date(time.getAttribute('datetime'));
    const clock = moment.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', hour12: false });
    const day = moment.toLocaleDateString([], { day: '2-digit', month: 'short' });
    const today = moment.toDateString() === new Date().toDateString();
    const text = time.hasAttribute('data-day') || !today ? `${day} ${clock}` : clock;
    if (time.textContent !== text) time.textContent = text;
  }
};
localise();
watch('value', localise);
