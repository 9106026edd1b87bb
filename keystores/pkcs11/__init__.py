"""KeyManager "pkcs11": keys generated in a PKCS#11 token (OASIS PKCS#11 2.40 and later), which never leave it.

In the program: manager.py is the KeyManager that the rest sees, root.py a root's key; tokens.py has the primary and its
clones, device.py a token with its breaker, pool.py and lane.py its sessions, process.py its worker.

In a worker: service.py serves the sessions, connection.py opens them anew, session.py uses them, module.py is the
library; templates.py says what new keys shall be. protocol.py is what the two say to each other.
"""
