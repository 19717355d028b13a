from tests.support.checkpoints import random_folder, random_model, scripted  # noqa: F401
