"""The market as a service: OpenEnv, sessions, pages, the arena, and adapters to other libraries."""
