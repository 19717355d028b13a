"""Several machines, with Ray: answers to many prompts side by side, and the layers of one model shared out.

Ray starts processes, finds machines and notices lost ones (https://docs.ray.io). Nothing here listens for connections.
"""
