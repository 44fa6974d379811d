"Settings that hold for every test."
from hypothesis import settings

settings.register_profile("untimed", deadline=None)   # the first call of a compiled function takes seconds
settings.load_profile("untimed")
