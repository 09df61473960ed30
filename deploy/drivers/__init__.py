"""How are Franka arms reached? One protocol (`base.py`), one file a client library, and MuJoCo as a twin."""
