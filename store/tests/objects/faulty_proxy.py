"""A TCP proxy that fails on purpose: faulty_proxy.py LISTEN_PORT SERVER_PORT RATE

With probability RATE each: a connection is answered by 503, or reset at once; an answer's first byte
is held back for two seconds; a piece of a request (uploads are many pieces) or of an answer is half
sent and the client reset, or held back for a second. With a fifth of that probability a connection
is never answered. SIGTERM ends it, and it prints how often it did what.
"""
import asyncio
import collections
import random
import signal
import sys

PIECE_BYTES = 4096


class Proxy:
    def __init__(self, server, rate):
        self.server, self.rate = server, rate
        self.done = collections.Counter()

    def fails(self, what, rate=None):
        failing = random.random() < (self.rate if rate is None else rate)
        self.done[what] += failing
        return failing

    async def relay(self, what, reader, writer, client):
        try:
            late = what == "answer" and self.fails("first byte held back")
            while piece := await reader.read(PIECE_BYTES):
                if late:
                    await asyncio.sleep(2)
                    late = False
                if self.fails(f"{what} cut"):
                    writer.write(piece[: len(piece) // 2])
                    client.transport.abort()
                    break
                if self.fails(f"{what} held back"):
                    await asyncio.sleep(1)
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def connect(self, reader, writer):
        if self.fails("never answered", self.rate / 5):
            await reader.read()
            writer.close()
        elif self.fails("503"):
            writer.write(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            writer.close()
        elif self.fails("reset at once"):
            writer.transport.abort()
        else:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.server)
            await asyncio.gather(
                self.relay("request", reader, server_writer, writer),
                self.relay("answer", server_reader, writer, writer),
            )


async def main(listen, server, rate):
    proxy = Proxy(server, rate)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await asyncio.start_server(proxy.connect, "127.0.0.1", listen)
    await stop.wait()
    print("faults:", ", ".join(f"{what} {times}" for what, times in sorted(proxy.done.items())))


random.seed(1)
asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
