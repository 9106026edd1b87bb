from regopy.interpreter import Interpreter as Interpreter
