-- When it is looked at again whether another channel goes on with a message that its provider doesn't take; null: it wasn't yet.
ALTER TABLE messages ADD COLUMN look_at BIGINT;
