"""The second version's default command: asks for a module the image lacks."""

import flask_limiter

flask_limiter.Limiter()
