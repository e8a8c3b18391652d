; Lines are read from the screen, when they were edited and RETURN was given.

; Read a character from the line in which the cursor is, when RETURN has been given.
readline:
        tya
        pha
        txa
        pha
        lda crsw
        bne nextcharacter
        lda pntr
        sta lxsp+1
        lda tblx
        sta lxsp
waitkey:
        lda ndx
        sta blnsw               ; the cursor blinks while there is nothing
        beq waitkey
        sei
        jsr hidecursor
        jsr takekey
        cmp #$83                ; SHIFT with STOP
        beq runkey
        cmp #return
        beq enter
        jsr printscreen
        jmp waitkey

runkey: lda stkey               ; STOP would end what it began
        cmp #$7f
        beq runkey
        ldx #runtextend-runtext
        stx ndx
1:      lda runtext-1,x
        sta keyd-1,x
        dex
        bne 1b
        beq waitkey
runtext:
        .text "L", $cf, "\"*", 13, "R", $d5, 13
runtextend:

enter:
        lda #3
        sta crsw
        lda #0
        sta qtsw
        sta insrt
        ldy lnmx                ; the last that is no space
1:      lda (pnt),y
        cmp #space
        bne 2f
        dey
        bpl 1b
2:      iny
        sty indx
        ; If the cursor is still in the line where the reading began, begin there; else where the line does.
        lda lxsp
        bmi 4f
        cmp tblx
        beq 3f
        tax
        lda lxsp+1
        cmp #columns
        bcs 4f
        inx
        cpx tblx
        bne 4f
        lda ldtb1,x
        bmi 4f
3:      lda lxsp+1
        .byte $2c
4:      lda #0
        sta pntr
nextcharacter:
        ldy pntr
        cpy indx
        bcs endofline
        inc pntr
        lda (pnt),y
        jsr fromscreen
        cmp #$de                ; pi, in the code that programs have
        bne returndata
        lda #$ff
returndata:
        sta data
        pla
        tax
        pla
        tay
        lda data
        clc
        rts
endofline:
        lda #0
        sta crsw
        lda dfltn
        cmp #3                  ; what is read from the screen is not followed by a new line
        beq 1f
        lda #return
        jsr printscreen
1:      lda #return
        bne returndata

; The character below the cursor is shown again.
hidecursor:
        lda blnon
        beq 1f
        lda gdbln
        ldx gdcol
        ldy #0
        sty blnon
        ldy pntr
        sta (pnt),y
        txa
        sta (user),y
1:      rts

; The first character of the keyboard's buffer.
takekey:
        ldy keyd
        ldx #0
1:      lda keyd+1,x
        sta keyd,x
        inx
        cpx ndx
        bne 1b
        dec ndx
        tya
        cli
        clc
        rts
