"""One file per HTTP surface: a body in, the gateway asked, bytes out."""
