"""Several engines at once, each in a process of its own: conversations are handed out to them one by one."""
