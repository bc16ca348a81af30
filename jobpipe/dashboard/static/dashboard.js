// Every page works without this file.
(() => {
  const root = document.documentElement, one = (what, where = document) => where.querySelector(what);
  const each = (what, act, where = document) => where.querySelectorAll(what).forEach(act);
  const on = (name, act) => addEventListener(name, act);
  const kept = (name, value) => { try { return value ? (localStorage[name] = value) : localStorage[name]; } catch {} };

  // Theme: before anything is painted.
  const themes = ["auto", "light", "dark"], theme = () => (themes.includes(kept("theme")) ? kept("theme") : "auto");
  const paint = (name) => {
    if (name) kept("theme", name);
    root.dataset.theme = theme();
    each("[data-theme-set]", (it) => it.setAttribute("aria-pressed", it.dataset.themeSet === theme()));
  };
  paint();

  // Times come in UTC, the same bytes for all viewers.
  const UNITS = [[86400, 3600, "d", "h"], [3600, 60, "h", "m"], [60, 1, "m", "s"]];
  const lasted = (s) => {
    const [big, small, u, v] = UNITS.find(([size]) => s >= size) || [1, 1, "s"], rest = v && Math.floor((s % big) / small);
    return `${Math.floor(Math.max(0, s) / big).toLocaleString("en")} ${u}${rest ? ` ${rest} ${v}` : ""}`;
  };
  const clock = (at) => at.toLocaleTimeString("sv");
  const local = (at) => (at.toDateString() === new Date().toDateString() ? "" : `${at.toLocaleDateString("sv")} `) + clock(at);
  const FORMS = {
    at: local, since: (at) => `since ${local(at)}`, age: (at, s) => lasted(s), for: (at, s) => `for ${lasted(s)}`,
    in: (at, s) => (s > 0 ? "now" : `in ${lasted(-s)}`),
  };
  const say = (it) => {
    const at = new Date(it.dateTime), text = FORMS[it.dataset.form](at, (Date.now() - at) / 1000);
    if (it.textContent !== text) it.textContent = text;
  };
  const ours = (line) => line.replace(/http:\/\/localhost:\d+/, location.origin);
  const localize = (where) => {
    each("time", say, where);
    each("[data-at]", (it) => (it.textContent = clock(new Date(it.dataset.at))), where);
    each("[data-copy]", (it) => (it.hidden = false), where);
    each("[data-curl]", (it) => (it.textContent = ours(it.textContent)), where);
  };
  setInterval(() => document.hidden || each("time", say), 1000);

  // Live; without a stream the page asks every 10 seconds.
  let paused, polls, told = 0;
  const mark = (state, text) => one("#mark") && Object.assign(one("#mark"), { textContent: text }).setAttribute("data-state", state);
  const ok = () => { clearInterval(polls); polls = 0; mark("live", "live"); };
  const lost = () => {
    if (document.hidden || polls) return;
    mark("late", `stopped ${clock(new Date())}`);
    polls = setInterval(() => document.hidden || paused || htmx.trigger("#poll", "poll"), 10000);
  };
  on("htmx:sse:after:connection", (event) => (event.detail.connection.status === 200 ? ok : lost)());
  for (const name of ["htmx:sse:error", "htmx:response:error", "htmx:error"]) on(name, lost);
  on("stale", () => mark("late", "the store does not answer"));
  on("fresh", ok);
  on("htmx:sse:before:message", (event) => { if (paused) event.preventDefault(); });
  on("htmx:before:swap", ({ detail: { tasks } }) => {
    tasks.splice(0, tasks.length, ...tasks.filter((it) => it.target));
    for (const it of tasks) localize(it.fragment);
  });
  on("htmx:after:swap", () => {
    const now = one("#f-head h1, #f-operation h1")?.textContent + " " + (one(".title .status")?.textContent || "");
    if (Date.now() < told + 10000 || one("#told").textContent === now) return;
    told = Date.now();
    one("#told").textContent = now;
  });

  const copy = async (text, button) => {
    try { await navigator.clipboard.writeText(text); } catch { // the page is no secure context
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    if (button) button.lastChild.data = "Copied";
  };

  // Keys
  let second, row = -1;
  const press = (what, where) => one(what, where)?.click();
  const move = (by) => {
    const links = document.querySelectorAll("main .row-link");
    links[(row = Math.min(links.length - 1, Math.max(0, row + by)))]?.focus();
  };
  const go = { o: "", j: "/jobs" }, keys = {
    "/": () => one("#q, #find").focus(), j: () => move(1), k: () => move(-1), g: () => (second = true),
    x: () => press("[type=checkbox]", document.activeElement.closest("tr") || root), "[": () => press("#older"), "]": () => press("#newer"),
    c: () => press("[data-key=c]"), r: () => press("[data-key=r]"), y: () => copy(one("#job-id")?.textContent || ""),
    l: () => one("#log")?.scrollIntoView(), p: () => ((paused = !paused) ? mark("late", "paused") : location.reload()),
    d: () => paint(themes[(themes.indexOf(theme()) + 1) % 3]), "?": () => one("#keys").showModal(),
  };
  on("keydown", (event) => {
    const field = event.target.closest?.("input:not([type=checkbox], [type=radio]), textarea");
    if (event.ctrlKey || event.altKey || event.metaKey || field || one("dialog[open]") || kept("keys") === "off") return;
    const { key } = event, to = second && key in go && (() => location.assign(`${document.body.dataset.base}/dashboard${go[key]}`));
    second = false;
    if (to || key in keys) { event.preventDefault(); (to || keys[key])(); }
  });
  on("click", ({ target }) => {
    const it = target.closest("[data-copy], [data-theme-set], [data-keys]"), data = it?.dataset || {};
    if (data.copy) copy(ours(data.copy), it);
    if (data.themeSet) paint(data.themeSet);
    if (it?.matches("[data-keys]")) keys["?"]();
  });
  on("change", ({ target }) => {
    if (target.id === "keys-on") kept("keys", target.checked ? "on" : "off");
    if (target.id === "all") each("tbody [name=id]", (box) => (box.checked = target.checked));
  });
  on("DOMContentLoaded", () => {
    each(".theme, [data-keys], #all", (it) => (it.hidden = false));
    one("#keys-on").checked = kept("keys") !== "off";
    paint();
    localize(document);
  });
})();
