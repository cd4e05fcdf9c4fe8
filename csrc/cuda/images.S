// The fat binaries of the kernels as data. -Wa,-I names the folder that they were compiled into.
        .section .rodata
.macro image name
        .global ffkern_image_\name
        .hidden ffkern_image_\name
        .balign 64
ffkern_image_\name:
        .incbin "\name\().fatbin"
.endm
        image bf16
        image f16
        image tf32
        image f32
        image rows
        image labels
        image head
#ifdef FFKERN_HAVE_HOPPER
        image hopper
#endif
        .section .note.GNU-stack, "", @progbits
