// SPDX-License-Identifier: GPL-2.0-or-later
// Puts the strings that Python made on the page, and tells Python what was pressed and typed. No other logic here:
// all markup comes from l4lab.views, which escapes what guests say; everything else is set as text.

const BUTTONS = [
  { command: "run", label: "Run", icon: "▶", key: "r", hint: "Run the machine, or pause it" },
  { command: "step", label: "Step", icon: "⇥", key: "s", hint: "Execute one instruction" },
  { command: "step_event", label: "Step event", icon: "⇻", key: "e", hint: "Run to the next kernel event" },
];
const STATES = { paused: "❚❚ Paused", running: "▶ Running", ended: "■ Ended", failed: "✖ Failed" };

// What a VT220's keys send; letters, Enter and control codes are made below.
const KEYS = {
  Enter: "\r", Backspace: "\x7f", Tab: "\t", Escape: "\x1b", Delete: "\x1b[3~",
  ArrowUp: "\x1b[A", ArrowDown: "\x1b[B", ArrowRight: "\x1b[C", ArrowLeft: "\x1b[D",
  Home: "\x1b[H", End: "\x1b[F", PageUp: "\x1b[5~", PageDown: "\x1b[6~",
};

const NO_GRAPHVIZ =
  "This picture needs Graphviz: install it (Debian: apt install graphviz), or run tools/fetch_viz.py, " +
  "which needs npm; then restart the kernel. In words:";

let graphviz; // a promise of the WebAssembly build, or of nothing; one for all dashboards on the page

export default {
  render({ model, el }) {
    const root = make("div", "l4-dashboard");
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", model.get("title") || "Machine");
    root.setAttribute("data-lm-suppress-shortcuts", "true"); // keys pressed in here are ours, not JupyterLab's
    root.tabIndex = -1; // a click anywhere in here gives us the shortcuts
    root.append(toolbar(model), make("div", "l4-grid"));
    root.lastChild.append(
      consolePanel(model),
      screenPanel(model),
      panel("Where we are", "l4-where", who(model), row(markup(model, "disassembly"), markup(model, "registers"))),
      panel("VM exits", "l4-exits", row(markup(model, "exit_counts"), markup(model, "exits"))),
      panel("Counters", "l4-counters", markup(model, "counters"), markup(model, "kernel_exits")),
      panel("Messages (IPC)", "l4-ipc", markup(model, "ipc")),
      panel("Threads and address spaces", "l4-spaces", graph(model), row(markup(model, "mappings"), markup(model, "threads"))),
    );
    root.addEventListener("keydown", (event) => {
      const button = BUTTONS.find(({ key }) => key === event.key);
      if (!button || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("textarea")) return;
      event.preventDefault();
      press(model, button.command);
    });
    el.append(root);
  },
};

// -- the toolbar -------------------------------------------------------------------------------------------------------

function toolbar(model) {
  const bar = make("div", "l4-toolbar");
  const buttons = make("div", "l4-buttons");
  buttons.setAttribute("role", "toolbar");
  buttons.setAttribute("aria-label", "Run and step");
  const title = make("strong", "l4-title");
  bar.append(title, buttons);
  for (const { command, label, icon, key, hint } of BUTTONS) {
    const button = make("button", `l4-button l4-${command}`);
    button.type = "button";
    button.title = `${hint} (key ${key.toUpperCase()})`;
    button.setAttribute("aria-label", label);
    button.setAttribute("aria-keyshortcuts", key);
    const shown = make("span", "l4-icon", icon);
    shown.setAttribute("aria-hidden", "true");
    button.append(shown, make("span", "l4-label", label));
    button.addEventListener("click", () => press(model, command));
    buttons.append(button);
  }
  const state = make("span", "l4-state");
  const status = make("span", "l4-status");
  const line = make("div", "l4-statusline");
  line.append(state, " ", status);
  const trouble = make("details", "l4-trouble");
  const traceback = make("pre", "l4-traceback");
  trouble.append(make("summary", "", "What went wrong"), traceback);
  bar.append(line, trouble);

  const run = buttons.querySelector(".l4-run");
  follow(model, ["title"], () => (title.textContent = model.get("title")));
  follow(model, ["state"], () => {
    const running = model.get("state") === "running";
    run.querySelector(".l4-icon").textContent = running ? "❚❚" : "▶";
    run.querySelector(".l4-label").textContent = running ? "Pause" : "Run";
    run.setAttribute("aria-label", running ? "Pause" : "Run");
    state.textContent = STATES[model.get("state")];
    state.dataset.state = model.get("state");
  });
  state.setAttribute("role", "status"); // spoken when it changes; the line beside it changes too often for that
  follow(model, ["status"], () => (status.textContent = model.get("status")));
  follow(model, ["trouble"], () => {
    traceback.textContent = model.get("trouble");
    trouble.hidden = !model.get("trouble");
  });
  return bar;
}

function press(model, command) {
  const running = model.get("state") === "running";
  model.send({ command: command === "run" && running ? "pause" : command });
}

// -- panels ------------------------------------------------------------------------------------------------------------

function panel(heading, className, ...contents) {
  const details = make("details", `l4-panel ${className}`);
  details.open = true;
  details.append(make("summary", "l4-heading", heading), ...contents);
  return details;
}

/** Side by side where there is room. */
function row(...boxes) {
  const row = make("div", "l4-row");
  row.append(...boxes);
  return row;
}

function who(model) {
  const line = make("p", "l4-who");
  follow(model, ["who"], () => (line.textContent = model.get("who")));
  return line;
}

/** A scrollable piece of markup from Python. */
function markup(model, name) {
  const box = scrollable(`l4-box l4-box-${name}`, name.replace("_", " "));
  follow(model, [name], () => {
    const top = box.scrollTop;
    box.innerHTML = model.get(name);
    box.scrollTop = top;
    box.hidden = !model.get(name);
  });
  return box;
}

function scrollable(className, label) {
  const box = make("div", className);
  box.tabIndex = 0; // so that the keyboard can scroll it
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", label);
  return box;
}

/** The address spaces as drawn by `dot`, or by Graphviz in the browser, or in words. */
function graph(model) {
  const box = scrollable("l4-box l4-graph", "address spaces");
  follow(model, ["graph_svg", "graph_dot", "graph_text"], async () => {
    const dot = model.get("graph_dot");
    if (model.get("graph_svg")) {
      box.innerHTML = model.get("graph_svg");
      return;
    }
    const viz = await (graphviz ??= load(model));
    if (dot !== model.get("graph_dot")) return; // a newer one is on its way
    if (viz) box.replaceChildren(viz.renderSVGElement(dot));
    else box.replaceChildren(make("p", "l4-note", NO_GRAPHVIZ), make("pre", "", model.get("graph_text")));
  });
  return box;
}

/** Graphviz for the browser, which Python has as a file; null if it has not. */
function load(model) {
  return new Promise((resolve) => {
    model.on("msg:custom", async function arrived(message, [source]) {
      if (!("viz" in message)) return;
      model.off("msg:custom", arrived);
      if (!message.viz) return resolve(null);
      const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      try {
        resolve(await (await import(url)).instance());
      } catch (error) {
        console.error(error); // no WebAssembly here, say: the words remain
        resolve(null);
      } finally {
        URL.revokeObjectURL(url);
      }
    });
    model.send({ command: "viz" });
  });
}

// -- the console -------------------------------------------------------------------------------------------------------

// Typing goes to an invisible text area: so input methods, pasting and screen readers work as anywhere else.
function consolePanel(model) {
  const screen = make("div", "l4-screen");
  const output = make("pre", "l4-output");
  output.setAttribute("role", "log");
  output.setAttribute("aria-label", "Guest console, output");
  screen.append(output);
  follow(model, ["console"], () => {
    const before = output.textContent;
    const after = model.get("console");
    if (after.startsWith(before)) output.append(after.slice(before.length)); // keeps what is selected
    else output.textContent = after;
  });
  const terminal = typedAt(model, screen, "Guest console", (typed) => model.send({ type: typed }));
  return panel("Guest console", "l4-console", ...terminal);
}

/** The guest's text screen and its keyboard; hidden until there is something on the screen. */
function screenPanel(model) {
  const screen = make("div", "l4-picture");
  const terminal = typedAt(model, screen, "Guest screen", (typed) => model.send({ press: typed }));
  const box = panel("Guest screen and keyboard", "l4-vga", ...terminal);
  follow(model, ["screen"], () => {
    screen.innerHTML = model.get("screen");
    box.hidden = !model.get("screen");
  });
  return box;
}

/** Something to look at, where keys that are pressed are sent to the guest; and a line that says so. */
function typedAt(model, screen, name, send) {
  const terminal = make("div", "l4-terminal");
  const input = make("textarea", "l4-input");
  input.setAttribute("aria-label", `${name}, input. Shift+Tab leaves it.`);
  for (const [name, value] of [["autocapitalize", "off"], ["autocomplete", "off"], ["spellcheck", "false"], ["rows", "1"]])
    input.setAttribute(name, value);
  const hint = make("p", "l4-hint");
  terminal.append(screen, input);

  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    const typed = bytesOf(event);
    if (typed === null) return;
    event.preventDefault();
    send(typed);
  });
  const flush = (event) => {
    if (event.isComposing || !input.value) return;
    send(input.value.replaceAll(/\r?\n/g, "\r"));
    input.value = "";
  };
  input.addEventListener("input", flush);
  input.addEventListener("compositionend", flush);
  screen.addEventListener("mouseup", () => {
    if (getSelection().isCollapsed) input.focus({ preventScroll: true }); // else: somebody wants to copy
  });

  follow(model, ["state"], () => {
    const running = model.get("state") === "running";
    const fate = running ? "" : " The machine stands still: it reads them when it runs.";
    hint.textContent = `Click here or Tab to it, and keys go to the machine; Shift+Tab leaves.${fate}`;
  });
  return [terminal, hint];
}

/** What a key sends; null if it is the browser's: copying, pasting, leaving, and letters, which arrive as input. */
function bytesOf(event) {
  if (event.isComposing || event.metaKey || event.altKey) return null;
  if (event.key === "Tab" && event.shiftKey) return null;
  if (event.ctrlKey) {
    const letter = event.key.length === 1 ? event.key.toUpperCase().charCodeAt(0) : 0;
    const ours = !event.shiftKey && letter >= 0x40 && letter < 0x60 && event.key !== "v";
    return ours ? String.fromCharCode(letter & 0x1f) : null;
  }
  return KEYS[event.key] ?? null;
}

// -- small things ------------------------------------------------------------------------------------------------------

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/** Do it now, and whenever one of these traits changes. */
function follow(model, names, change) {
  for (const name of names) model.on(`change:${name}`, change);
  change();
}
