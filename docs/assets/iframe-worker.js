// Search in pages that are opened from the disk: browsers start no Worker there, so a hidden frame takes its place.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.documentElement.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => this.deliver(data, (event) => this.onmessage?.(event));
      this.ready = new Promise((loaded, failed) => {
        const script = inside.document.createElement("script");
        script.src = new URL(url, location);
        script.onload = loaded;
        script.onerror = failed;
        inside.document.head.append(script);
      });
      this.ready.catch((error) => this.onerror?.(error));
    }
    postMessage(data) {
      this.ready.then(() => this.deliver(data, (event) => this.frame.contentWindow.dispatchEvent(event)));
    }
    deliver(data, receive) { // as a Worker gets it: a copy, and later
      const event = new MessageEvent("message", { data: structuredClone(data) });
      setTimeout(() => receive(event));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
