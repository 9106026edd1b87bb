"""KeyManager "pkcs11": keys generated in a PKCS#11 token (OASIS PKCS#11 2.40 and later), which never leave it.

module.py is the one module that touches the PKCS#11 library; worker.py gives it a thread and deadlines; manager.py is
the KeyManager that the rest of the program sees.
"""
