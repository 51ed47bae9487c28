// The model on the server that sent this page. See web/live.py for the form of the answers.
let socket = null;

export async function describe() {
  const response = await fetch("model.json");
  if (!response.ok) throw new Error((await response.json()).error);
  return response.json();
}

export async function segmentFile(file) {
  const response = await fetch("predict", { method: "POST", body: file });
  if (!response.ok) throw new Error((await response.json()).error);
  return parse(await response.arrayBuffer());
}

// One frame, an ImageData; the next only after its answer.
export async function segmentFrame(frame) {
  const opened = await connection();
  const data = new Uint8Array(4 + 3 * frame.width * frame.height);
  new DataView(data.buffer).setUint16(0, frame.width, true);
  new DataView(data.buffer).setUint16(2, frame.height, true);
  for (let i = 0, j = 4; i < frame.data.length; i += 4) {
    data[j++] = frame.data[i];
    data[j++] = frame.data[i + 1];
    data[j++] = frame.data[i + 2];
  }
  return new Promise((resolve, reject) => {
    opened.onmessage = (event) => resolve(parse(event.data));
    opened.onclose = () => reject(new Error("The server has ended the connection."));
    opened.send(data);
  });
}

function connection() {
  if (socket && socket.readyState === WebSocket.OPEN) return Promise.resolve(socket);
  const address = new URL("frames", location.href);
  address.protocol = address.protocol.replace("http", "ws");
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  return new Promise((resolve, reject) => {
    socket.onopen = () => resolve(socket);
    socket.onerror = () => reject(new Error("The server does not answer."));
  });
}

function parse(buffer) {
  const head = new DataView(buffer);
  const [width, height] = [head.getUint16(0, true), head.getUint16(2, true)];
  const plane = (i) => new Uint8Array(buffer, 12 + i * width * height, width * height);
  const several = head.getUint32(4, true) > 1;
  return {
    width, height, milliseconds: head.getFloat32(8, true), probability: plane(0), classes: several ? plane(1) : null,
  };
}
