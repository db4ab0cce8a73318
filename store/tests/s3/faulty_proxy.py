"""A TCP proxy that fails on purpose: faulty_proxy.py LISTEN_PORT SERVER_PORT RATE

With probability RATE each: a connection is answered by 503, or reset at once; an answer's first byte
is held back for two seconds; a piece of an answer is cut off with the connection, or held back for
a second. With a fifth of that probability a connection is never answered.
"""
import asyncio
import random
import sys

PIECE_BYTES = 4096


async def relay(reader, writer, rate):
    try:
        slow = random.random() < rate
        while piece := await reader.read(PIECE_BYTES):
            if slow:
                await asyncio.sleep(2)
                slow = False
            if random.random() < rate:
                writer.write(piece[: len(piece) // 2])
                writer.transport.abort()
                return
            if random.random() < rate:
                await asyncio.sleep(1)
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main(listen, server, rate):
    async def connect(reader, writer):
        if random.random() < rate / 5:
            await reader.read()
            writer.close()
            return
        if random.random() < rate:
            writer.write(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            writer.close()
            return
        if random.random() < rate:
            writer.transport.abort()
            return
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", server)
        await asyncio.gather(
            relay(reader, server_writer, 0), relay(server_reader, writer, rate)
        )

    await (await asyncio.start_server(connect, "127.0.0.1", listen)).serve_forever()


random.seed(1)
asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
