// A plain WebSocket relay: two clients of one path, /accept/ID and /connect/ID, by the most used library of Node.js.
// usage: node relay.js PORT
const { WebSocketServer, createWebSocketStream } = require('ws');

const waiting = new Map();
const server = new WebSocketServer({ host: '127.0.0.1', port: Number(process.argv[2]), perMessageDeflate: false });
server.on('connection', (socket, request) => {
  const [, side, id] = request.url.split('/');
  const stream = createWebSocketStream(socket);
  stream.on('error', () => socket.terminate());
  if (side === 'accept') {
    waiting.set(id, stream);
    return;
  }
  const other = waiting.get(id);
  waiting.delete(id);
  stream.pipe(other);
  other.pipe(stream);
});
