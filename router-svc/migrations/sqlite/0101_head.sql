-- An append is one statement, a transaction of its own: the head moves with it.
CREATE TRIGGER events_head AFTER INSERT ON events BEGIN
    UPDATE log SET head = NEW.sequence;
END;
