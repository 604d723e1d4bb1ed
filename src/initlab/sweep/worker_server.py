"""The fork server of process workers: without torch, so that it starts before this process imports torch."""

from initlab.system.fork_server import SharedServer

WORKER_SERVER = SharedServer("initlab.sweep.executors.process_worker:serve_tasks")
