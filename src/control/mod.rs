//! Control plane: may block and allocate; never touches a device connection.
