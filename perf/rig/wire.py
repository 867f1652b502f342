"""One request at a time, as a device sends it; nothing here is measured."""

import socket


def read_message(stream):
    """Head lines and body of a message with Content-Length; None at the end of the stream."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = stream.recv(1)
        if not byte:
            return None
        head += byte
    lines = head.decode("latin-1").split("\r\n")[:-2]
    length = 0
    for line in lines[1:]:
        if line.lower().startswith("content-length:"):
            length = int(line.split(":")[1])
    body = b""
    while len(body) < length:
        piece = stream.recv(length - len(body))
        if not piece:
            return None
        body += piece
    return lines, body


def ask(port, source, fields=()):
    """Status of one request from `source`; 0 if the connection ends without an answer."""
    with socket.create_connection(("127.0.0.1", port), 20, (source, 0)) as stream:
        stream.settimeout(20)
        lines = ["POST /in HTTP/1.1", "Host: m2u.talk2m.com", *fields, "Content-Length: 2"]
        stream.sendall(("\r\n".join(lines) + "\r\n\r\nhi").encode())
        message = read_message(stream)
        return int(message[0][0].split()[1]) if message else 0
