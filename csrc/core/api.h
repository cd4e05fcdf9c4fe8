// Marks what the shared library lets others call.
#pragma once

#define FFKERN_API __attribute__((visibility("default")))
