"""Topic `kvcache`: what compressed caches lose and save, on questions, books, passkeys, in generation, by the clock."""
