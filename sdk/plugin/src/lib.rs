//! What a Tidemill plugin links: bindings, record views, builders and a test harness.
