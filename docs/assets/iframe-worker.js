// Search on pages that are opened from disk. Browsers start no worker from file: addresses, so there the script of the
// worker runs in a hidden frame. Only what the search uses of the interface is here: postMessage and message events.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html><title>search</title>";
      frame.addEventListener("load", () => this.start(frame.contentWindow, String(url)), { once: true });
      document.body.append(frame);
    }

    start(scope, url) {
      scope.postMessage = (data) => setTimeout(() => this.dispatchEvent(new MessageEvent("message", { data })));
      scope.importScripts = (...addresses) =>
        addresses.reduce((before, address) => before.then(() => load(scope, address)), Promise.resolve());
      load(scope, url).then(() => {
        this.scope = scope;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      });
    }

    postMessage(data) {
      if (this.scope) setTimeout(() => this.scope.dispatchEvent(new this.scope.MessageEvent("message", { data })));
      else this.waiting.push(data);
    }
  };

  const load = (scope, address) =>
    new Promise((resolve, reject) => {
      const script = scope.document.createElement("script");
      script.src = address;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`cannot load ${address}`));
      scope.document.head.append(script);
    });
}
