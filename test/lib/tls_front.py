#!/usr/bin/env python3
"""TLS in front of a port of this host: tls_front.py CERTIFICATE KEY PORT. Prints the port that it listens on."""

import select
import socket
import ssl
import sys
import threading


def serve(client, port, context):
    try:
        with context.wrap_socket(client, server_side=True) as inner, \
                socket.create_connection(("127.0.0.1", port)) as outer:
            while True:
                ready = [inner] if inner.pending() else select.select([inner, outer], [], [])[0]
                for source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    (outer if source is inner else inner).sendall(data)
    except OSError:
        pass


def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve, args=(client, int(sys.argv[3]), context), daemon=True).start()


main()
