// The model on the server that sent this page. See web/live.py for the form of the answers.
let line = null; // { socket, opened, waiting }: frames are answered in their order

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

// One frame, an ImageData.
export async function segmentFrame(frame) {
  const { socket, waiting } = await connection();
  const data = new Uint8Array(4 + 3 * frame.width * frame.height);
  new DataView(data.buffer).setUint16(0, frame.width, true);
  new DataView(data.buffer).setUint16(2, frame.height, true);
  for (let i = 0, j = 4; i < frame.data.length; i += 4) {
    data[j++] = frame.data[i];
    data[j++] = frame.data[i + 1];
    data[j++] = frame.data[i + 2];
  }
  return new Promise((resolve, reject) => {
    waiting.push({ resolve, reject });
    socket.send(data);
  });
}

function connection() {
  if (line && line.socket.readyState <= WebSocket.OPEN) return line.opened;
  const address = new URL("frames", location.href);
  address.protocol = address.protocol.replace("http", "ws");
  const mine = { socket: new WebSocket(address), waiting: [] };
  const { socket, waiting } = mine;
  socket.binaryType = "arraybuffer";
  socket.onmessage = (event) => waiting.shift().resolve(parse(event.data));
  socket.onclose = () => {
    for (const { reject } of waiting.splice(0)) reject(new Error("The server has ended the connection."));
  };
  mine.opened = new Promise((resolve, reject) => {
    socket.onopen = () => resolve(mine);
    socket.onerror = () => reject(new Error("The server does not answer."));
  });
  line = mine;
  return mine.opened;
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
