// Lets the search work in pages that were opened as files: browsers start no Worker there, so the worker's
// script runs in a hidden frame. (mkdocs-material would load a script like this from another host.)
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #waiting = [];
    #frame = document.createElement("iframe");

    constructor(url) {
      super();
      this.#frame.hidden = true;
      this.#frame.srcdoc = "<!doctype html>";
      this.#frame.addEventListener("load", () => this.#start(new URL(url, location.href).href), { once: true });
      if (document.body) document.body.append(this.#frame);
      else document.addEventListener("DOMContentLoaded", () => document.body.append(this.#frame));
    }

    #start(url) {
      const inside = this.#frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.document.createElement("script");
      script.src = url;
      script.onload = () => {
        for (const data of this.#waiting.splice(0)) this.#deliver(data);
        this.postMessage = this.#deliver;
      };
      inside.document.head.append(script);
    }

    #deliver(data) {
      const inside = this.#frame.contentWindow;
      inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    }

    postMessage(data) {
      this.#waiting.push(data);
    }
  };
}
