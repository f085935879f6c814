// Talks to the server that sent this page: OpenAI's API, streamed. No library, and nothing from elsewhere.

const $ = (id) => document.getElementById(id);
const KEY = "bitexport-key";
const SETTINGS = ["system", "temperature", "limit"];

let history = [];        // {role, content}, without the system prompt
let running = null;      // the AbortController of the answer in progress
let chats = true;        // false: the model has no chat template and only continues a text

class ServerError extends Error {
  constructor(status, { message, type } = {}) {
    super(message ?? `the server answered with status ${status}`);
    this.status = status;
    this.type = type;
  }
}

async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const method = body ? "POST" : "GET";
  const answer = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new ServerError(answer.status, problem.error);
  }
  return answer;
}

// The JSON objects of a stream of server-sent events.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.code, event.error);
      yield event;
    }
  }
}

async function connect() {
  try {
    const { data } = await (await ask("v1/models")).json();
    $("model").textContent = data[0].id;
    document.title = data[0].id;
    await findMode();
    $("key-form").hidden = true;
    $("composer").hidden = false;
  } catch (error) {
    if (error.status === 401) return askForKey();
    if (error.status === 503) {
      setTimeout(connect, 1000);
      return state("Loading the model…");
    }
    $("send").disabled = true;
    return state(error.message);
  }
}

async function findMode() {
  try {
    await ask("apply-template", { messages: [{ role: "user", content: "?" }] });
    state("Ready");
  } catch (error) {
    if (error.type === "no_chat_template") {
      chats = false;
      state("No chat template: continues your text");
      $("welcome").textContent = "This model has no chat template. Write the beginning of a text, and it goes on.";
      $("text").placeholder = $("text-label").textContent = "Beginning of a text";
      $("send").textContent = "Continue";
      $("new").textContent = "Clear";
      document.querySelectorAll(".only-chat").forEach((part) => (part.hidden = true));
    } else if (error.type === "embedding_model") {
      state("An embedding model");
      $("welcome").textContent = "This is an embedding model: it turns texts into vectors, at /v1/embeddings.";
      $("send").disabled = $("text").disabled = true;
    } else {
      throw error;
    }
  }
}

function askForKey() {
  state("Locked");
  $("key-error").textContent = sessionStorage.getItem(KEY) ? "The server does not accept this key." : "";
  $("key-form").hidden = false;
  $("composer").hidden = true;
  $("welcome").hidden = true;
  $("key").focus();
}

const state = (text) => ($("state").textContent = text);

function element(name, className, parent) {
  const made = document.createElement(name);
  if (className) made.className = className;
  parent?.append(made);
  return made;
}

// Text with fenced code as <pre>. Everything is set as text: what a model writes is never HTML.
function show(body, text) {
  body.replaceChildren();
  text.split(/^```[^\n]*\n?/m).forEach((part, number) => {
    if (number % 2) element("pre", "", body).textContent = part.replace(/\n$/, "");
    else if (part) body.append(number ? part.replace(/^\n/, "") : part);
  });
}

function addMessage(role) {
  $("welcome").hidden = true;
  const item = element("li", `message ${role}`, $("messages"));
  element("span", "hidden", item).textContent = role === "user" ? "You: " : "Model: ";
  return { item, body: element("div", "body", item) };
}

function addThinking(message) {
  const details = element("details");
  element("summary", "", details).textContent = "Thoughts";
  message.item.insertBefore(details, message.body);
  return element("div", "", details);
}

function addFooter(message, text, timings, stopped) {
  const footer = element("footer", "", message.item);
  const copy = element("button", "", footer);
  copy.type = "button";
  copy.textContent = "Copy";
  copy.addEventListener("click", async () => {
    await toClipboard(text);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  const parts = [];
  if (timings) {
    parts.push(timings.predicted_n === 1 ? "1 token" : `${timings.predicted_n} tokens`);
    if (timings.predicted_n > 1) parts.push(`${timings.predicted_per_second.toFixed(1)} tokens/s`);
  }
  if (stopped) parts.push(stopped);
  element("span", "statistics", footer).textContent = parts.join(" · ");
}

async function toClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // without HTTPS, browsers offer only this
  const area = element("textarea", "hidden", document.body);
  area.value = text;
  area.select();
  document.execCommand("copy");
  area.remove();
}

// Keeps the end in view, unless the reader has scrolled up.
function following() {
  const main = document.querySelector("main");
  const atEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 60;
  return () => atEnd && (main.scrollTop = main.scrollHeight);
}

// Calls a function at most once for each picture that the browser draws: a fast model writes more often.
function onceAFrame(draw) {
  let waiting = null;
  return {
    soon: () => (waiting ??= requestAnimationFrame(() => ((waiting = null), draw()))),
    now: () => (cancelAnimationFrame(waiting), (waiting = null), draw()),
  };
}

function request(text) {
  const common = {
    stream: true,
    temperature: Number($("temperature").value),
    max_tokens: Math.max(1, Number($("limit").value) || 512),
  };
  if (!chats) return ["v1/completions", { ...common, prompt: text }];
  const system = $("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...history];
  return ["v1/chat/completions", { ...common, messages }];
}

async function send(text) {
  const conversation = history;  // another one may begin before this answer ends
  if (chats) {
    conversation.push({ role: "user", content: text });
    addMessage("user").body.textContent = text;
  }
  const message = addMessage("model");
  message.item.classList.add("busy");
  if (!chats) {
    message.item.classList.add("continuation");
    element("span", "given", message.body).textContent = text;
  }
  const target = chats ? message.body : element("span", "", message.body);
  busy(new AbortController());
  following()();
  document.querySelector("main").scrollTop = 1e9;
  const draw = onceAFrame(() => {
    const follow = following();
    show(target, chats ? answer.trimStart() : answer);
    follow();
  });
  let answer = "", thoughts = null, timings = null, stopped = "", problem = null;
  try {
    const [path, body] = request(text);
    for await (const event of events(await ask(path, body, running.signal))) {
      const choice = event.choices?.[0];
      timings = event.timings ?? timings;
      if (choice?.delta?.reasoning_content) {
        thoughts ??= addThinking(message);
        thoughts.textContent += choice.delta.reasoning_content;
      }
      answer += choice?.delta?.content ?? choice?.text ?? "";
      if (choice?.finish_reason === "length") stopped = "stopped at the limit";
      draw.soon();
    }
  } catch (error) {
    if (error.name === "AbortError") stopped = "stopped";
    else problem = error;
  }
  draw.now();
  message.item.classList.remove("busy");
  if (problem) {
    const line = element("p", "problem", message.item);
    line.setAttribute("role", "alert");
    line.textContent = `Error: ${problem.message}`;
    if (chats && !answer) {
      conversation.pop();  // so that the next message does not follow one without an answer
      $("text").value ||= text;
    }
  }
  if (answer || stopped) addFooter(message, answer, timings, stopped);
  if (answer && chats) conversation.push({ role: "assistant", content: answer });
  else if (stopped && chats) conversation.pop();
  $("spoken").textContent = answer;
  busy(null);
  if (problem?.status === 401) askForKey();
  following()();
}

function busy(controller) {
  running = controller;
  $("send").hidden = Boolean(controller);
  $("stop").hidden = !controller;
  if (controller) $("stop").focus();
  else $("text").focus();
}

function fit() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value;
  if (running || $("send").disabled || !text.trim()) return;
  $("text").value = "";
  fit();
  send(chats ? text.trim() : text);
});

$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
$("text").addEventListener("input", fit);
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
$("stop").addEventListener("click", () => running?.abort());

$("new").addEventListener("click", () => {
  running?.abort();
  history = [];
  $("messages").replaceChildren();
  $("welcome").hidden = false;
  $("text").focus();
});

$("settings-button").addEventListener("click", () => {
  $("settings").hidden = !$("settings").hidden;
  $("settings-button").setAttribute("aria-expanded", String(!$("settings").hidden));
});
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("settings").addEventListener("input", () => {
  $("temperature-value").textContent = Number($("temperature").value).toFixed(1);
  for (const name of SETTINGS) localStorage.setItem(`bitexport-${name}`, $(name).value);
});

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  $("welcome").hidden = history.length > 0;
  connect();
});

for (const name of SETTINGS) $(name).value = localStorage.getItem(`bitexport-${name}`) ?? $(name).value;
$("temperature-value").textContent = Number($("temperature").value).toFixed(1);
connect();
